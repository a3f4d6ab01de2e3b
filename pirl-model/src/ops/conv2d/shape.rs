//! The sizes of a convolution.

use crate::ops::placements;

/// The sizes of one square-kernel, ungrouped, undilated convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images in the batch.
    pub n: usize,
    /// Height of the input, pixels.
    pub h: usize,
    /// Width of the input, pixels.
    pub w: usize,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Step of the kernel in both directions, at least 1.
    pub stride: usize,
    /// Zero rows and columns added on every side of the input.
    pub padding: usize,
}

impl ConvShape {
    /// Height and width of the output; zero where the padded input is smaller than the kernel.
    pub fn out_hw(&self) -> (usize, usize) {
        let size = |input| placements(input, self.kernel, self.stride, self.padding);
        (size(self.h), size(self.w))
    }

    /// Length of the input, `n * h * w * c_in`.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Length of the output, `n * out_h * out_w * c_out`.
    pub fn out_len(&self) -> usize {
        let (h, w) = self.out_hw();
        self.n * h * w * self.c_out
    }

    /// Length of the weight, `c_out * c_in * kernel * kernel`.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.kernel * self.kernel
    }
}

/// Tasks that a call is cut into at least, where its size allows: enough to keep threads busy to
/// the end. A constant, so that the cut (and with it every sum) is the same on every machine.
pub(super) const TASKS: usize = 16;
