//! Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888).

/// What scales the step of a parameter tensor with norm `weights` and gradient norm `gradient`;
/// 1 where either is 0, as in Apex's LARC and its descendants.
pub(super) fn trust(coefficient: f64, weights: f64, gradient: f64, decay: f64) -> f64 {
    if weights > 0.0 && gradient > 0.0 {
        coefficient * weights / (gradient + decay * weights)
    } else {
        1.0
    }
}

/// Euclidean norm, summed in `f64`.
pub(super) fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
