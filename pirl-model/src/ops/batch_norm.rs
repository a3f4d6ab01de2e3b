//! Batch normalisation over NHWC rows, with the residual addition and the ReLU that follow it.
//!
//! A ResNet always adds and rectifies straight after normalising, and each of the three alone is
//! bound by memory traffic, so one pass does them all: `out = relu(gamma * xhat + beta + residual)`.

/// The statistics of one batch, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStats {
    /// Mean over all rows.
    pub mean: Vec<f32>,
    /// Biased variance (divided by the number of rows).
    pub var: Vec<f32>,
    /// `1 / sqrt(var + eps)`.
    pub inv_std: Vec<f32>,
}

/// Normalises by the statistics of the batch itself, which it returns.
///
/// `x`, `residual`, `out`: `(rows, c)`; `gamma`, `beta`: `(c)`. `out` is overwritten.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn forward_train(
    x: &[f32],
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    residual: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) -> BatchStats {
    let rows = (x.len() / c.max(1)) as f64;
    let (mut sum, mut square) = (vec![0f64; c], vec![0f64; c]);
    for row in x.chunks_exact(c.max(1)) {
        for (s, &x) in sum.iter_mut().zip(row) {
            *s += x as f64;
        }
    }
    sum.iter_mut().for_each(|s| *s /= rows);
    for row in x.chunks_exact(c.max(1)) {
        for ((s, &x), m) in square.iter_mut().zip(row).zip(&sum) {
            *s += (x as f64 - m).powi(2);
        }
    }
    let stats = BatchStats {
        mean: sum.iter().map(|&s| s as f32).collect(),
        var: square.iter().map(|&s| (s / rows) as f32).collect(),
        inv_std: square
            .iter()
            .map(|&s| (1.0 / (s / rows + eps as f64).sqrt()) as f32)
            .collect(),
    };
    apply(
        x,
        c,
        gamma,
        beta,
        &stats.mean,
        &stats.inv_std,
        residual,
        relu,
        out,
    );
    stats
}

/// Normalises by given statistics (the running ones).
///
/// `x`, `residual`, `out`: `(rows, c)`; the rest: `(c)`. `out` is overwritten.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn forward_eval(
    x: &[f32],
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    running_mean: &[f32],
    running_var: &[f32],
    eps: f32,
    residual: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    let inv_std: Vec<f32> = running_var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    apply(
        x,
        c,
        gamma,
        beta,
        running_mean,
        &inv_std,
        residual,
        relu,
        out,
    );
}

#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
fn apply(
    x: &[f32],
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    mean: &[f32],
    inv_std: &[f32],
    residual: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    for (i, (o, &x)) in out.iter_mut().zip(x).enumerate() {
        let ch = i % c;
        let mut y = (x - mean[ch]) * inv_std[ch] * gamma[ch] + beta[ch];
        if let Some(r) = residual {
            y += r[i];
        }
        *o = if relu && y <= 0.0 { 0.0 } else { y };
    }
}

/// The gradients of [`forward_train`]: the statistics depend on `x`, so `dx` is centred.
///
/// `x` and `out` are the forward pass's input and output (`out` is read only where `relu`), `dy`
/// the gradient of `out`. `dgamma`, `dbeta`: `(c)`; `dx`, `dresidual`: `(rows, c)`; all overwritten.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn backward_train(
    x: &[f32],
    out: &[f32],
    dy: &[f32],
    c: usize,
    gamma: &[f32],
    stats: &BatchStats,
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dx: &mut [f32],
    dresidual: Option<&mut [f32]>,
) {
    backward(
        x,
        out,
        dy,
        c,
        gamma,
        &stats.mean,
        &stats.inv_std,
        true,
        relu,
        dgamma,
        dbeta,
        dx,
        dresidual,
    );
}

/// The gradients of [`forward_eval`]: the statistics are constants.
///
/// Arguments as for [`backward_train`].
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn backward_eval(
    x: &[f32],
    out: &[f32],
    dy: &[f32],
    c: usize,
    gamma: &[f32],
    running_mean: &[f32],
    running_var: &[f32],
    eps: f32,
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dx: &mut [f32],
    dresidual: Option<&mut [f32]>,
) {
    let inv_std: Vec<f32> = running_var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    backward(
        x,
        out,
        dy,
        c,
        gamma,
        running_mean,
        &inv_std,
        false,
        relu,
        dgamma,
        dbeta,
        dx,
        dresidual,
    );
}

#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
fn backward(
    x: &[f32],
    out: &[f32],
    dy: &[f32],
    c: usize,
    gamma: &[f32],
    mean: &[f32],
    inv_std: &[f32],
    centre: bool,
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dx: &mut [f32],
    mut dresidual: Option<&mut [f32]>,
) {
    let rows = (x.len() / c.max(1)) as f64;
    let (mut g, mut b) = (vec![0f64; c], vec![0f64; c]);
    for i in 0..x.len() {
        let ch = i % c;
        let d = if relu && out[i] <= 0.0 { 0.0 } else { dy[i] };
        b[ch] += d as f64;
        g[ch] += (d * (x[i] - mean[ch]) * inv_std[ch]) as f64;
    }
    for i in 0..x.len() {
        let ch = i % c;
        let d = if relu && out[i] <= 0.0 { 0.0 } else { dy[i] };
        if let Some(r) = dresidual.as_deref_mut() {
            r[i] = d;
        }
        let xhat = (x[i] - mean[ch]) * inv_std[ch];
        let shift = if centre {
            (b[ch] / rows) as f32 + xhat * (g[ch] / rows) as f32
        } else {
            0.0
        };
        dx[i] = gamma[ch] * inv_std[ch] * (d - shift);
    }
    for ch in 0..c {
        dgamma[ch] = g[ch] as f32;
        dbeta[ch] = b[ch] as f32;
    }
}
