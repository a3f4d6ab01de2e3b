//! Means of exponentials by their logarithms.

/// `ln mean exp(z)` over `count` numbers, from `ln sum exp(z)` of their parts.
pub(super) fn log_mean(sums: Vec<f64>, count: usize) -> f64 {
    let total = sums.into_iter().fold(f64::NEG_INFINITY, ln_add_exp);
    total - (count as f64).ln()
}

/// `ln(exp(a) + exp(b))`.
pub(super) fn ln_add_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    max + ((a - max).exp() + (b - max).exp()).ln()
}
