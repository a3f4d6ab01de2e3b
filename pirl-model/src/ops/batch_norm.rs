//! Batch normalisation over NHWC rows, with the residual addition and the ReLU that follow it.
//!
//! A ResNet always adds and rectifies straight after normalising, and each of the three alone is
//! bound by memory traffic, so one pass does them all: `out = relu(gamma * xhat + beta + residual)`.
//! Training reads its input twice, once for the statistics and once to apply them.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use rayon::prelude::*;

use super::Element;
use super::vectorised::vectorised;

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

/// Batch norm by given statistics, as a line for each channel: `x * scale + shift`.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// The factor of each channel.
    pub scale: Vec<f32>,
    /// What is added to each channel.
    pub shift: Vec<f32>,
}

impl Affine {
    /// `(x - running_mean) / sqrt(running_var + eps) * gamma + beta`.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub fn of_batch_norm(
        gamma: &[f32],
        beta: &[f32],
        running_mean: &[f32],
        running_var: &[f32],
        eps: f32,
    ) -> Self {
        let inv_std = inverse_deviation(running_var, eps);
        Self::new(gamma, beta, running_mean, &inv_std)
    }

    fn new(gamma: &[f32], beta: &[f32], mean: &[f32], inv_std: &[f32]) -> Self {
        let c = gamma.len();
        assert_eq!(
            (beta.len(), mean.len(), inv_std.len()),
            (c, c, c),
            "channels of a batch norm"
        );
        let scale: Vec<f32> = gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect();
        let shift = (0..c).map(|i| beta[i] - mean[i] * scale[i]).collect();
        Self { scale, shift }
    }
}

/// Normalises by the statistics of the batch itself, which it returns.
///
/// `x`, `residual`, `out`: `(rows, c)`; `gamma`, `beta`: `(c)`. `out` is overwritten. Without rows
/// the statistics are NaN.
///
/// # Panics
/// If the lengths disagree.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn forward_train<T: Element>(
    x: &[T],
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    residual: Option<&[T]>,
    relu: bool,
    out: &mut [T],
) -> BatchStats {
    let stats = statistics(x, c, eps);
    let affine = Affine::new(gamma, beta, &stats.mean, &stats.inv_std);
    normalise(x, c, &affine, residual, relu, out);
    stats
}

/// Normalises by given statistics (the running ones).
///
/// `x`, `residual`, `out`: `(rows, c)`; the rest: `(c)`. `out` is overwritten.
///
/// # Panics
/// If the lengths disagree.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn forward_eval<T: Element>(
    x: &[T],
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    running_mean: &[f32],
    running_var: &[f32],
    eps: f32,
    residual: Option<&[T]>,
    relu: bool,
    out: &mut [T],
) {
    let affine = Affine::of_batch_norm(gamma, beta, running_mean, running_var, eps);
    normalise(x, c, &affine, residual, relu, out);
}

/// The gradients of [`forward_train`]: the statistics depend on `x`, so `dx` is centred.
///
/// `x` and `out` are the forward pass's input and output (`out` is read only where `relu`), `dy`
/// the gradient of `out`. `dgamma`, `dbeta`: `(c)`; `dx`, `dresidual`: `(rows, c)`; all overwritten.
///
/// # Panics
/// If the lengths disagree.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn backward_train<T: Element>(
    x: &[T],
    out: &[T],
    dy: &[T],
    c: usize,
    gamma: &[f32],
    stats: &BatchStats,
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dx: &mut [T],
    dresidual: Option<&mut [T]>,
) {
    let (mean, inv_std) = (&stats.mean, &stats.inv_std);
    parameter_gradients(x, out, dy, c, mean, inv_std, relu, dgamma, dbeta);
    let rows = (x.len() / c.max(1)) as f32;
    let scale: Vec<f32> = gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect();
    // dx = scale (d - mean(d) - xhat mean(d xhat)), as one line in d and x - mean.
    let slope: Vec<f32> = (0..c)
        .map(|i| -scale[i] * inv_std[i] * (dgamma[i] / rows))
        .collect();
    let shift: Vec<f32> = (0..c).map(|i| -scale[i] * (dbeta[i] / rows)).collect();
    let line = Line {
        mean,
        scale: &scale,
        slope: &slope,
        shift: &shift,
    };
    input_gradients(x, out, dy, c, &line, relu, dx, dresidual);
}

/// The gradients of [`forward_eval`]: the statistics are constants.
///
/// Arguments as for [`backward_train`], with the statistics and `eps` of [`forward_eval`].
///
/// # Panics
/// If the lengths disagree.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn backward_eval<T: Element>(
    x: &[T],
    out: &[T],
    dy: &[T],
    c: usize,
    gamma: &[f32],
    running_mean: &[f32],
    running_var: &[f32],
    eps: f32,
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dx: &mut [T],
    dresidual: Option<&mut [T]>,
) {
    let inv_std = inverse_deviation(running_var, eps);
    parameter_gradients(x, out, dy, c, running_mean, &inv_std, relu, dgamma, dbeta);
    let scale: Vec<f32> = gamma.iter().zip(&inv_std).map(|(g, i)| g * i).collect();
    let zero = vec![0f32; c];
    let line = Line {
        mean: running_mean,
        scale: &scale,
        slope: &zero,
        shift: &zero,
    };
    input_gradients(x, out, dy, c, &line, relu, dx, dresidual);
}

/// `dx = scale * d + slope * (x - mean) + shift`, per channel.
struct Line<'a> {
    mean: &'a [f32],
    scale: &'a [f32],
    slope: &'a [f32],
    shift: &'a [f32],
}

fn inverse_deviation(var: &[f32], eps: f32) -> Vec<f32> {
    var.iter()
        .map(|&v| (1.0 / (v as f64 + eps as f64).sqrt()) as f32)
        .collect()
}

/// How a matrix of `c` columns is cut. A few rows of a narrow matrix are taken as one wide row, on
/// which loops are long enough to vectorise; per-channel values are repeated to its width.
struct Cut {
    /// Rows in a wide row.
    repeat: usize,
    /// Numbers in a block, which sums in `f32` and stays in the cache between two readings.
    block: usize,
    /// Numbers in a task. It depends on `c` alone, so sums do not depend on the number of threads.
    task: usize,
}

impl Cut {
    fn new(c: usize) -> Cut {
        let repeat = 256usize.div_ceil(c);
        let wide = c * repeat;
        let block = wide * (16384 / wide).max(16);
        Cut {
            repeat,
            block,
            task: block * (65536 / block).max(2),
        }
    }

    fn tile(&self, values: &[f32]) -> Vec<f32> {
        values.repeat(self.repeat)
    }

    /// Adds up the rows of a wide row, in `f64`.
    fn fold(&self, wide: &[f32], c: usize) -> Vec<f64> {
        let mut sum = vec![0f64; c];
        for row in wide.chunks_exact(c) {
            for (s, &v) in sum.iter_mut().zip(row) {
                *s += v as f64;
            }
        }
        sum
    }
}

vectorised! {
    /// Adds the wide rows of `x` to `sum`; the last may be short.
    fn add_rows<T: Element>(x: &[T], sum: &mut [f32]) {
        for row in x.chunks(sum.len()) {
            for (s, &x) in sum.iter_mut().zip(row) {
                *s += x.to_f32();
            }
        }
    }
}

vectorised! {
    /// Adds the squared deviations of the wide rows of `x` from `mean` to `sum`.
    fn add_squares<T: Element>(x: &[T], mean: &[f32], sum: &mut [f32]) {
        for row in x.chunks(mean.len()) {
            for ((s, &x), &m) in sum.iter_mut().zip(row).zip(mean) {
                let x = x.to_f32();
                *s += (x - m) * (x - m);
            }
        }
    }
}

/// Count, means and sums of squared deviations of a part of the rows.
struct Moments {
    rows: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Moments {
    fn new(c: usize) -> Moments {
        Moments {
            rows: 0.0,
            mean: vec![0.0; c],
            square: vec![0.0; c],
        }
    }

    /// Takes in another part (Chan, Golub, LeVeque 1979): no cancellation, whatever the mean.
    fn merge(&mut self, rows: f64, mean: &[f64], square: &[f64]) {
        let total = self.rows + rows;
        let (weight, cross) = (rows / total, self.rows * rows / total);
        for (((m, s), &other), &square) in self
            .mean
            .iter_mut()
            .zip(&mut self.square)
            .zip(mean)
            .zip(square)
        {
            let delta = other - *m;
            *m += delta * weight;
            *s += square + delta * delta * cross;
        }
        self.rows = total;
    }
}

fn statistics<T: Element>(x: &[T], c: usize, eps: f32) -> BatchStats {
    if c == 0 {
        return BatchStats {
            mean: Vec::new(),
            var: Vec::new(),
            inv_std: Vec::new(),
        };
    }
    let cut = Cut::new(c);
    let parts: Vec<Moments> = x
        .par_chunks(cut.task)
        .map(|x| {
            let mut part = Moments::new(c);
            let mut wide = vec![0f32; c * cut.repeat];
            for block in x.chunks(cut.block) {
                let rows = (block.len() / c) as f64;
                wide.fill(0.0);
                add_rows(block, &mut wide);
                let mut mean = cut.fold(&wide, c);
                mean.iter_mut().for_each(|m| *m /= rows);
                let rounded: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
                wide.fill(0.0);
                add_squares(block, &cut.tile(&rounded), &mut wide);
                part.merge(rows, &mean, &cut.fold(&wide, c));
            }
            part
        })
        .collect();
    let mut all = Moments::new(c);
    for part in &parts {
        all.merge(part.rows, &part.mean, &part.square);
    }
    let var: Vec<f64> = all.square.iter().map(|s| s / all.rows).collect();
    BatchStats {
        mean: all
            .mean
            .iter()
            .map(|&m| if all.rows > 0.0 { m as f32 } else { f32::NAN })
            .collect(),
        var: var.iter().map(|&v| v as f32).collect(),
        inv_std: var
            .iter()
            .map(|v| (1.0 / (v + eps as f64).sqrt()) as f32)
            .collect(),
    }
}

vectorised! {
    /// `out = [relu](x * scale + shift [+ residual])` over wide rows.
    fn apply<T: Element>(
        x: &[T],
        scale: &[f32],
        shift: &[f32],
        residual: Option<&[T]>,
        relu: bool,
        out: &mut [T],
    ) {
        let wide = scale.len();
        // A NaN is not below the floor, so it passes.
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        match residual {
            Some(residual) => {
                let inputs = x.chunks(wide).zip(residual.chunks(wide));
                for (out, (x, residual)) in out.chunks_mut(wide).zip(inputs) {
                    let per_channel = scale.iter().zip(shift);
                    for (((o, &x), &r), (&a, &b)) in out.iter_mut().zip(x).zip(residual).zip(per_channel) {
                        let y = x.to_f32() * a + b + r.to_f32();
                        *o = T::from_f32(if y < floor { floor } else { y });
                    }
                }
            }
            None => {
                for (out, x) in out.chunks_mut(wide).zip(x.chunks(wide)) {
                    for ((o, &x), (&a, &b)) in out.iter_mut().zip(x).zip(scale.iter().zip(shift)) {
                        let y = x.to_f32() * a + b;
                        *o = T::from_f32(if y < floor { floor } else { y });
                    }
                }
            }
        }
    }
}

fn normalise<T: Element>(
    x: &[T],
    c: usize,
    affine: &Affine,
    residual: Option<&[T]>,
    relu: bool,
    out: &mut [T],
) {
    assert_eq!(affine.scale.len(), c, "channels of a batch norm");
    assert_eq!(x.len(), out.len(), "input and output of a batch norm");
    assert!(
        residual.is_none_or(|r| r.len() == x.len()),
        "input and residual of a batch norm"
    );
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let (scale, shift) = (cut.tile(&affine.scale), cut.tile(&affine.shift));
    out.par_chunks_mut(cut.task)
        .enumerate()
        .for_each(|(task, out)| {
            let part = task * cut.task..task * cut.task + out.len();
            apply(
                &x[part.clone()],
                &scale,
                &shift,
                residual.map(|r| &r[part]),
                relu,
                out,
            );
        });
}

vectorised! {
    /// Adds `d` and `d * (x - mean)` over the wide rows to `sum` and `product`, where `d` is `dy`
    /// with the entries cleared that the ReLU cut off.
    fn add_gradients<T: Element>(
        x: &[T],
        out: Option<&[T]>,
        dy: &[T],
        mean: &[f32],
        sum: &mut [f32],
        product: &mut [f32],
    ) {
        let wide = mean.len();
        for (i, (x, dy)) in x.chunks(wide).zip(dy.chunks(wide)).enumerate() {
            let sums = sum.iter_mut().zip(product.iter_mut()).zip(mean);
            match out {
                Some(out) => {
                    let out = &out[i * wide..][..x.len()];
                    for ((((s, p), &m), (&x, &dy)), &o) in sums.zip(x.iter().zip(dy)).zip(out) {
                        let d = if o.to_f32() <= 0.0 { 0.0 } else { dy.to_f32() };
                        *s += d;
                        *p += d * (x.to_f32() - m);
                    }
                }
                None => {
                    for (((s, p), &m), (&x, &dy)) in sums.zip(x.iter().zip(dy)) {
                        let d = dy.to_f32();
                        *s += d;
                        *p += d * (x.to_f32() - m);
                    }
                }
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
fn parameter_gradients<T: Element>(
    x: &[T],
    out: &[T],
    dy: &[T],
    c: usize,
    mean: &[f32],
    inv_std: &[f32],
    relu: bool,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    assert_eq!(
        (mean.len(), dgamma.len(), dbeta.len()),
        (c, c, c),
        "channels of a batch norm"
    );
    assert_eq!(x.len(), dy.len(), "input and gradient of a batch norm");
    assert!(
        !relu || out.len() == x.len(),
        "input and output of a batch norm"
    );
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let wide_mean = cut.tile(mean);
    let parts: Vec<(Vec<f64>, Vec<f64>)> = x
        .par_chunks(cut.task)
        .enumerate()
        .map(|(task, x)| {
            let (mut sums, mut products) = (vec![0f64; c], vec![0f64; c]);
            let (mut sum, mut product) = (wide_mean.clone(), wide_mean.clone());
            for (block, x) in x.chunks(cut.block).enumerate() {
                let at = task * cut.task + block * cut.block;
                let part = at..at + x.len();
                sum.fill(0.0);
                product.fill(0.0);
                let out = relu.then(|| &out[part.clone()]);
                add_gradients(x, out, &dy[part], &wide_mean, &mut sum, &mut product);
                for (total, v) in sums.iter_mut().zip(cut.fold(&sum, c)) {
                    *total += v;
                }
                for (total, v) in products.iter_mut().zip(cut.fold(&product, c)) {
                    *total += v;
                }
            }
            (sums, products)
        })
        .collect();
    for i in 0..c {
        dbeta[i] = parts.iter().map(|part| part.0[i]).sum::<f64>() as f32;
        dgamma[i] = (parts.iter().map(|part| part.1[i]).sum::<f64>() * inv_std[i] as f64) as f32;
    }
}

vectorised! {
    /// `dx` along the line given per channel, over wide rows; `dresidual` is `d` itself.
    fn apply_gradient<T: Element>(
        x: &[T],
        out: Option<&[T]>,
        dy: &[T],
        line: &Line<'_>,
        dx: &mut [T],
        dresidual: Option<&mut [T]>,
    ) {
        let wide = line.mean.len();
        match (out, dresidual) {
            (Some(out), Some(dresidual)) => {
                // The masked gradient is itself wanted: write it, then read it back from the cache.
                let inputs = out.chunks(wide).zip(dy.chunks(wide)).zip(x.chunks(wide));
                for ((dx, dr), ((out, dy), x)) in dx.chunks_mut(wide).zip(dresidual.chunks_mut(wide)).zip(inputs) {
                    for ((dr, &o), &dy) in dr.iter_mut().zip(out).zip(dy) {
                        *dr = if o.to_f32() <= 0.0 { T::from_f32(0.0) } else { dy };
                    }
                    for (i, ((dx, &d), &x)) in dx.iter_mut().zip(&*dr).zip(x).enumerate() {
                        let moved = line.slope[i] * (x.to_f32() - line.mean[i]) + line.shift[i];
                        *dx = T::from_f32(line.scale[i] * d.to_f32() + moved);
                    }
                }
            }
            (Some(out), None) => {
                let inputs = out.chunks(wide).zip(dy.chunks(wide)).zip(x.chunks(wide));
                for (dx, ((out, dy), x)) in dx.chunks_mut(wide).zip(inputs) {
                    let coefficients = line.scale.iter().zip(line.slope).zip(line.shift.iter().zip(line.mean));
                    let inputs = x.iter().zip(dy).zip(out);
                    for ((dx, ((&x, &dy), &o)), ((&a, &b), (&c, &m))) in dx.iter_mut().zip(inputs).zip(coefficients) {
                        let d = if o.to_f32() <= 0.0 { 0.0 } else { dy.to_f32() };
                        *dx = T::from_f32(a * d + (b * (x.to_f32() - m) + c));
                    }
                }
            }
            (None, dresidual) => {
                if let Some(dresidual) = dresidual {
                    dresidual.copy_from_slice(dy);
                }
                for (dx, (dy, x)) in dx.chunks_mut(wide).zip(dy.chunks(wide).zip(x.chunks(wide))) {
                    let coefficients = line.scale.iter().zip(line.slope).zip(line.shift.iter().zip(line.mean));
                    for ((dx, (&x, &d)), ((&a, &b), (&c, &m))) in dx.iter_mut().zip(x.iter().zip(dy)).zip(coefficients) {
                        *dx = T::from_f32(a * d.to_f32() + (b * (x.to_f32() - m) + c));
                    }
                }
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
fn input_gradients<T: Element>(
    x: &[T],
    out: &[T],
    dy: &[T],
    c: usize,
    line: &Line<'_>,
    relu: bool,
    dx: &mut [T],
    dresidual: Option<&mut [T]>,
) {
    assert_eq!(
        (x.len(), line.scale.len()),
        (dx.len(), c),
        "input and gradient of a batch norm"
    );
    assert!(
        dresidual.as_ref().is_none_or(|r| r.len() == x.len()),
        "input and residual of a batch norm"
    );
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let wide = [line.mean, line.scale, line.slope, line.shift].map(|values| cut.tile(values));
    let line = Line {
        mean: &wide[0],
        scale: &wide[1],
        slope: &wide[2],
        shift: &wide[3],
    };
    let one = |task: usize, dx: &mut [T], dresidual: Option<&mut [T]>| {
        let part = task * cut.task..task * cut.task + dx.len();
        let out = relu.then(|| &out[part.clone()]);
        apply_gradient(&x[part.clone()], out, &dy[part], &line, dx, dresidual);
    };
    match dresidual {
        Some(dresidual) => dx
            .par_chunks_mut(cut.task)
            .zip(dresidual.par_chunks_mut(cut.task))
            .enumerate()
            .for_each(|(task, (dx, dresidual))| one(task, dx, Some(dresidual))),
        None => dx
            .par_chunks_mut(cut.task)
            .enumerate()
            .for_each(|(task, dx)| one(task, dx, None)),
    }
}
