//! The ops of this module from Candle's own differentiable ops, on NCHW tensors of any device.
//!
//! They are slow and simple: tests compare the fast ops with them, and devices without a fast path
//! run them. Candle ops whose backward is missing or wrong (its max-pool, its batch norm's running
//! statistics) are not used.

use candle_core::{D, Device, Result, Tensor};

/// Convolution of `x` `(n, c_in, h, w)` with `weight` `(c_out, c_in, k, k)`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h == w || stride == 1 {
        return x.conv2d(weight, padding, stride, 1, 1);
    }
    // Candle's gradient with respect to a strided input takes the rows that the last window leaves
    // over for the columns too. So the image is made square; zeros beyond its border change nothing.
    let size = h.max(w);
    let square = x
        .pad_with_zeros(2, 0, size - h)?
        .pad_with_zeros(3, 0, size - w)?;
    let kernel = weight.dim(D::Minus1)?;
    let outputs = |input: usize| match (input + 2 * padding).checked_sub(kernel) {
        Some(room) if stride > 0 => room / stride + 1,
        _ => 0,
    };
    square
        .conv2d(weight, padding, stride, 1, 1)?
        .narrow(2, 0, outputs(h))?
        .narrow(3, 0, outputs(w))
}

/// Batch norm of `x` `(n, c, h, w)` by the batch's own statistics, then the residual, then ReLU.
///
/// `gamma`, `beta`: `(c)`; `residual` as `x`. Returns the output, and per channel, `(c)`, the mean
/// and the biased variance.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let mean = x.mean_keepdim((0, 2, 3))?;
    let centred = x.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
    let xhat = centred.broadcast_div(&(&var + eps)?.sqrt()?)?;
    let out = finish(&xhat, gamma, beta, residual, relu)?;
    Ok((out, mean.flatten_all()?, var.flatten_all()?))
}

/// Batch norm of `x` `(n, c, h, w)` by given statistics, then the residual, then ReLU.
///
/// `gamma`, `beta`, `mean`, `var`: `(c)`; `residual` as `x`.
///
/// # Errors
/// If the shapes do not fit each other.
#[expect(clippy::too_many_arguments, reason = "the twin of a kernel")]
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let deviation = per_channel(&(var + eps)?.sqrt()?)?;
    let xhat = x
        .broadcast_sub(&per_channel(mean)?)?
        .broadcast_div(&deviation)?;
    finish(&xhat, gamma, beta, residual, relu)
}

/// `gamma * xhat + beta + residual`, rectified where asked.
fn finish(
    xhat: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    residual: Option<&Tensor>,
    rectified: bool,
) -> Result<Tensor> {
    let mut out = xhat
        .broadcast_mul(&per_channel(gamma)?)?
        .broadcast_add(&per_channel(beta)?)?;
    if let Some(residual) = residual {
        out = (out + residual)?;
    }
    if rectified { relu(&out) } else { Ok(out) }
}

/// `max(x, 0)` with gradient 0 at 0, as in PyTorch; Candle's own has gradient 1 there.
///
/// # Errors
/// If the device fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    let zero = x.zeros_like()?;
    x.le(&zero)?.where_cond(&zero, x)
}

/// The gradient of [`relu`]'s input from `dy`, that of its result `out`.
pub(crate) fn before_relu(out: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let zero = dy.zeros_like()?;
    out.le(&zero)?.where_cond(&zero, dy)
}

fn per_channel(values: &Tensor) -> Result<Tensor> {
    values.reshape((1, (), 1, 1))
}

/// Max-pooling of `x` `(n, c, h, w)` with minus infinity beyond its borders.
///
/// The winner of each window, the first in row order, is found without gradient; gathering it from
/// the input then sends the whole gradient there, and adds up where windows overlap. Unlike the
/// fast op, a NaN loses against any number that precedes it.
///
/// # Errors
/// If `x` has not four dimensions, or a window does not fit into the padded input.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if kernel == 0 || stride == 0 || 2 * padding > kernel {
        candle_core::bail!(
            "max-pool needs a window and stride of at least 1 and a padding of at most half the window, got {kernel}, {stride}, {padding}"
        );
    }
    let (oh, ow) = match (
        (h + 2 * padding).checked_sub(kernel),
        (w + 2 * padding).checked_sub(kernel),
    ) {
        (Some(y), Some(x)) if h > 0 && w > 0 => (y / stride + 1, x / stride + 1),
        _ => candle_core::bail!(
            "a {kernel}x{kernel} window does not fit into {h}x{w} padded by {padding}"
        ),
    };
    let device = x.device();
    let pixels = x.reshape((n, c, h * w))?.contiguous()?;
    let values = pixels.detach();
    let mut best: Option<(Tensor, Tensor)> = None;
    for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
        let index = window_tap((h, w), (oh, ow), (ky, kx), stride, padding, device)?
            .broadcast_as((n, c, oh * ow))?
            .contiguous()?;
        let value = values.gather(&index, D::Minus1)?;
        best = Some(match best {
            None => (value, index),
            Some((highest, winner)) => {
                let higher = value.gt(&highest)?;
                (
                    higher.where_cond(&value, &highest)?,
                    higher.where_cond(&index, &winner)?,
                )
            }
        });
    }
    let Some((_, winner)) = best else {
        candle_core::bail!("a max-pool window without pixels");
    };
    pixels.gather(&winner, D::Minus1)?.reshape((n, c, oh, ow))
}

/// The pixel under tap `(ky, kx)` of each window, `(1, 1, windows)`. A tap beyond the border is
/// moved to the nearest pixel inside, which is one of the same window: a maximum does not change
/// when it sees a pixel twice, and neither does the first in row order among equals.
fn window_tap(
    (h, w): (usize, usize),
    (oh, ow): (usize, usize),
    (ky, kx): (usize, usize),
    stride: usize,
    padding: usize,
    device: &Device,
) -> Result<Tensor> {
    let inside = |at: usize, size: usize| at.saturating_sub(padding).min(size - 1);
    let mut pixels = Vec::with_capacity(oh * ow);
    for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
        let (y, x) = (inside(oy * stride + ky, h), inside(ox * stride + kx, w));
        pixels.push((y * w + x) as u32);
    }
    Tensor::from_vec(pixels, (1, 1, oh * ow), device)
}

/// The mean over all pixels, `(n, c, h, w)` to `(n, c)`.
///
/// # Errors
/// If `x` has not four dimensions.
pub fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    x.mean((2, 3))
}

/// `x weight^T + bias` for `x` `(rows, inputs)`, `weight` `(outputs, inputs)`, `bias` `(outputs)`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
