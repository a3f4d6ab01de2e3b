//! The arithmetic on one image's row of logits: exponentials, logarithms and their sums.
//!
//! Every function is plain loops without branches or sums, which the compiler turns into vector
//! code, and sums in eight lanes of their results. It is compiled twice, for any processor and for
//! those with AVX2; both give the same bits. A logit of minus infinity (a masked
//! column) takes no part in any sum and gets the coefficient 0; a NaN makes the result NaN.

use std::f64::consts::LN_2;

use pirl_core::{prefetch, vectorised};

const LANES: usize = 8;

/// Terms summed in `f32` before the partial sums go to `f64`: a row of 32,000 summed in `f32`
/// throughout would lose up to three digits.
const BLOCK: usize = 256;

/// How many rows ahead of the one in use to prefetch.
const AHEAD: usize = 8;

vectorised! {
    /// `ln sum exp(z)`.
    pub(crate) fn log_sum_exp(z: &[f32]) -> f64 {
        log_sum_exp_body(z)
    }
}

vectorised! {
    /// Returns `sum softplus(z - threshold)` and leaves `sigmoid(z - threshold)`, its gradient.
    pub(crate) fn softplus(z: &mut [f32], threshold: f32) -> f64 {
        softplus_body(z, threshold)
    }
}

vectorised! {
    /// With `p = exp(z - log_s)`, the shares of the sum: returns `sum ln(1 + p)` and
    /// `sum p^2 / (1 + p)`, and leaves `p`.
    pub(crate) fn paper_sums(z: &mut [f32], log_s: f32) -> (f64, f64) {
        paper_sums_body(z, log_s)
    }
}

vectorised! {
    /// From `p` to the paper's gradient `p (level - p / (1 + p))`.
    pub(crate) fn paper_coefficients(p: &mut [f32], level: f32) {
        paper_coefficients_body(p, level)
    }
}

vectorised! {
    /// Leaves `level exp(z - log_s)`, the gradient of InfoNCE.
    pub(crate) fn shares(z: &mut [f32], log_s: f32, level: f32) {
        shares_body(z, log_s, level)
    }
}

vectorised! {
    /// `out[n] = scale * query . bank[indices[n]]`, without gathering the rows.
    pub(crate) fn dots(query: &[f32], bank: &[f32], indices: &[u32], scale: f32, out: &mut [f32]) {
        dots_body(query, bank, indices, scale, out)
    }
}

vectorised! {
    /// `out = sum_n coefficients[n] * bank[indices[n]]`, without gathering the rows.
    pub(crate) fn combine(coefficients: &[f32], bank: &[f32], indices: &[u32], out: &mut [f32]) {
        combine_body(coefficients, bank, indices, out)
    }
}

#[inline(always)]
fn log_sum_exp_body(z: &[f32]) -> f64 {
    let max = maximum(z);
    let mut terms = [0f32; BLOCK];
    let mut total = 0.0;
    for block in z.chunks(BLOCK) {
        for (term, &z) in terms.iter_mut().zip(block) {
            *term = exp(z - max);
        }
        total += sum(&terms[..block.len()]);
    }
    f64::from(max) + total.ln()
}

#[inline(always)]
fn softplus_body(z: &mut [f32], threshold: f32) -> f64 {
    let mut terms = [0f32; BLOCK];
    let mut total = 0.0;
    for block in z.chunks_mut(BLOCK) {
        for (term, z) in terms.iter_mut().zip(block.iter_mut()) {
            let x = *z - threshold;
            let e = exp(-x.abs());
            *term = x.max(0.0) + ln_1p(e);
            *z = (if x < 0.0 { e } else { 1.0 }) / (1.0 + e);
        }
        total += sum(&terms[..block.len()]);
    }
    total
}

#[inline(always)]
fn paper_sums_body(z: &mut [f32], log_s: f32) -> (f64, f64) {
    let mut log_terms = [0f32; BLOCK];
    let mut square_terms = [0f32; BLOCK];
    let (mut logs, mut squares) = (0.0, 0.0);
    for block in z.chunks_mut(BLOCK) {
        let terms = log_terms.iter_mut().zip(&mut square_terms);
        for ((log, square), z) in terms.zip(block.iter_mut()) {
            let x = *z - log_s;
            // A share exceeds 1 by rounding at most.
            let p = exp(if x > 0.0 { 0.0 } else { x });
            *log = ln_1p(p);
            *square = p * p / (1.0 + p);
            *z = p;
        }
        logs += sum(&log_terms[..block.len()]);
        squares += sum(&square_terms[..block.len()]);
    }
    (logs, squares)
}

#[inline(always)]
fn paper_coefficients_body(p: &mut [f32], level: f32) {
    for p in p {
        *p *= level - *p / (1.0 + *p);
    }
}

#[inline(always)]
fn shares_body(z: &mut [f32], log_s: f32, level: f32) {
    for z in z {
        let x = *z - log_s;
        *z = level * exp(if x > 0.0 { 0.0 } else { x });
    }
}

#[inline(always)]
fn dots_body(query: &[f32], bank: &[f32], indices: &[u32], scale: f32, out: &mut [f32]) {
    let dim = query.len();
    for (place, (out, &index)) in out.iter_mut().zip(indices).enumerate() {
        prefetch_ahead(bank, dim, indices, place);
        let row = &bank[index as usize * dim..][..dim];
        let mut sums = [[0f32; LANES]; 4];
        let (q, r) = (query.chunks_exact(4 * LANES), row.chunks_exact(4 * LANES));
        let tail: f32 = q
            .remainder()
            .iter()
            .zip(r.remainder())
            .map(|(a, b)| a * b)
            .sum();
        for (q, r) in q.zip(r) {
            for (i, sum) in sums.iter_mut().enumerate() {
                for (l, sum) in sum.iter_mut().enumerate() {
                    *sum += q[i * LANES + l] * r[i * LANES + l];
                }
            }
        }
        let mut lanes = [0f32; LANES];
        for l in 0..LANES {
            lanes[l] = (sums[0][l] + sums[1][l]) + (sums[2][l] + sums[3][l]);
        }
        *out = scale * (sum(&lanes) as f32 + tail);
    }
}

#[inline(always)]
fn combine_body(coefficients: &[f32], bank: &[f32], indices: &[u32], out: &mut [f32]) {
    let dim = out.len();
    let mut block_sum = vec![0f32; dim];
    out.fill(0.0);
    let blocks = coefficients.chunks(BLOCK).zip(indices.chunks(BLOCK));
    for (block, (coefficients, of_block)) in blocks.enumerate() {
        block_sum.fill(0.0);
        for (place, (&coefficient, &index)) in coefficients.iter().zip(of_block).enumerate() {
            prefetch_ahead(bank, dim, indices, block * BLOCK + place);
            let row = &bank[index as usize * dim..][..dim];
            for (sum, &x) in block_sum.iter_mut().zip(row) {
                *sum += coefficient * x;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&block_sum) {
            *out += sum;
        }
    }
}

/// Asks for a row that will be needed soon, that of an index after `place`: rows drawn from a large bank are in
/// no cache.
#[inline(always)]
fn prefetch_ahead(bank: &[f32], dim: usize, indices: &[u32], place: usize) {
    if let Some(&next) = indices.get(place + AHEAD) {
        prefetch(&bank[next as usize * dim..][..dim]);
    }
}

#[inline(always)]
fn maximum(z: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, tail) = z.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &z) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, z);
        }
    }
    lanes
        .iter()
        .chain(tail)
        .copied()
        .fold(f32::NEG_INFINITY, larger)
}

/// In eight lanes, added in `f64`.
#[inline(always)]
fn sum(terms: &[f32]) -> f64 {
    let (chunks, tail) = terms.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, &term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    lanes.iter().chain(tail).map(|&x| f64::from(x)).sum()
}

/// `exp(x)` for `x <= 0`, relative error below 2e-7; 0 below -87.
///
/// Cephes `expf`: `x = n ln 2 + r`, `|r| <= ln 2 / 2`, a polynomial for `exp(r)`, the exponent
/// field for `2^n`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that its product with n is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (LN_2 - LN_2_HIGH as f64) as f32;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut poly = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        poly = poly * r + coefficient;
    }
    let poly = poly * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { poly * power }
}

/// `ln(1 + p)` for `0 <= p <= 1`, relative error below 3e-7: `2 artanh(p / (2 + p))` by its series.
#[inline(always)]
fn ln_1p(p: f32) -> f32 {
    let s = p / (2.0 + p);
    let t = s * s;
    let mut poly = 1.0 / 15.0;
    for denominator in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        poly = poly * t + 1.0 / denominator;
    }
    2.0 * s * poly
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_rounding_and_zero_where_masked() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_1p_keeps_small_arguments() {
        for i in 0..100_000 {
            let p = (-(i as f64) * 8e-4).exp() as f32;
            let want = f64::from(p).ln_1p();
            let error = (f64::from(ln_1p(p)) - want).abs() / want;
            assert!(error < 3e-7, "ln_1p({p}): relative error {error}");
        }
        assert_eq!(ln_1p(0.0), 0.0);
    }

    #[test]
    fn vector_and_plain_code_agree_to_the_bit() {
        for n in [1, 7, 8, 9, 255, 256, 257, 1000] {
            let z: Vec<f32> = benches::fill(n as u32, n)
                .iter()
                .map(|x| x * 14.0)
                .collect();
            assert_eq!(log_sum_exp(&z), log_sum_exp_body(&z));
            let (mut a, mut b) = (z.clone(), z.clone());
            assert_eq!(softplus(&mut a, 1.5), softplus_body(&mut b, 1.5));
            assert_eq!(a, b);
            let (mut a, mut b) = (z.clone(), z.clone());
            let log_s = log_sum_exp(&z) as f32;
            assert_eq!(paper_sums(&mut a, log_s), paper_sums_body(&mut b, log_s));
            paper_coefficients(&mut a, 0.7);
            paper_coefficients_body(&mut b, 0.7);
            assert_eq!(a, b);
            let (mut a, mut b) = (z.clone(), z);
            shares(&mut a, log_s, 0.3);
            shares_body(&mut b, log_s, 0.3);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn a_masked_column_counts_for_nothing() {
        let z = [0.5, f32::NEG_INFINITY, -2.0];
        let kept = [0.5, -2.0];
        assert_eq!(log_sum_exp(&z), log_sum_exp(&kept));
        let (mut a, mut b) = (z, kept);
        assert_eq!(softplus(&mut a, 0.1), softplus(&mut b, 0.1));
        assert_eq!([a[0], a[1], a[2]], [b[0], 0.0, b[1]]);
        let (mut a, mut b) = (z, kept);
        assert_eq!(paper_sums(&mut a, 1.0), paper_sums(&mut b, 1.0));
        assert_eq!([a[0], a[1], a[2]], [b[0], 0.0, b[1]]);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        let z = [0.5, f32::NAN, -2.0];
        assert!(log_sum_exp(&z).is_nan());
        assert!(softplus(&mut z.clone(), 0.1).is_nan());
        assert!(paper_sums(&mut z.clone(), 0.1).0.is_nan());
    }
}
