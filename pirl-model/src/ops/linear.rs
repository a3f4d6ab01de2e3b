//! The fully connected layer, `y = x weight^T + bias`.

use super::Element;
use super::conv2d::{self, ConvShape, Winograd};

/// A linear layer is a 1x1 convolution over `rows` one-pixel images.
fn as_conv(rows: usize, inputs: usize, outputs: usize) -> ConvShape {
    ConvShape {
        n: rows,
        h: 1,
        w: 1,
        c_in: inputs,
        c_out: outputs,
        kernel: 1,
        stride: 1,
        padding: 0,
    }
}

/// `y = x weight^T + bias`.
///
/// `x`: `(rows, inputs)`, `weight`: `(outputs, inputs)`, `bias`: `(outputs)`, `y`:
/// `(rows, outputs)`, overwritten.
pub fn forward<T: Element>(
    rows: usize,
    inputs: usize,
    outputs: usize,
    x: &[T],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [T],
) {
    conv2d::forward(&as_conv(rows, inputs, outputs), Winograd::Off, x, weight, y);
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(outputs.max(1)) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y = T::from_f32(y.to_f32() + b);
            }
        }
    }
}

/// The gradients of [`forward`] from `dy` `(rows, outputs)`; each is overwritten.
///
/// `dx`: `(rows, inputs)`, `dw`: `(outputs, inputs)`, `db`: `(outputs)`, the sum of `dy` over rows.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain slices")]
pub fn backward<T: Element>(
    rows: usize,
    inputs: usize,
    outputs: usize,
    x: &[T],
    weight: &[f32],
    dy: &[T],
    dx: Option<&mut [T]>,
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    let shape = as_conv(rows, inputs, outputs);
    if let Some(dx) = dx {
        conv2d::backward_input(&shape, Winograd::Off, weight, dy, dx);
    }
    conv2d::backward_weight(&shape, Winograd::Off, x, dy, dw);
    if let Some(db) = db {
        db.fill(0.0);
        for row in dy.chunks_exact(outputs.max(1)) {
            for (b, d) in db.iter_mut().zip(row) {
                *b += d.to_f32();
            }
        }
    }
}
