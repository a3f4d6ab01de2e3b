//! How the rows of a batch norm are cut into blocks and tasks.

/// Numbers in a wide row, at least: loops over it are long enough to vectorise.
const WIDE: usize = 256;
/// Numbers in a block, about: 64 KiB of `f32`, which stay in the cache between two readings.
const BLOCK: usize = 16_384;
/// Wide rows in a block, at least.
const BLOCK_ROWS: usize = 16;
/// Numbers in a task, about: enough to pay for handing it to a thread.
const TASK: usize = 65_536;
/// Blocks in a task, at least.
const TASK_BLOCKS: usize = 2;

/// How a matrix of `c` columns is cut. A few rows of a narrow matrix are taken as one wide row;
/// per-channel values are repeated to its width.
pub(super) struct Cut {
    /// Rows in a wide row.
    repeat: usize,
    /// Numbers in a block, which is summed in `f32`.
    pub(super) block: usize,
    /// Numbers in a task. It depends on `c` alone, so sums do not depend on the number of threads.
    pub(super) task: usize,
}

impl Cut {
    /// `c` must not be 0.
    pub(super) fn new(c: usize) -> Self {
        let repeat = WIDE.div_ceil(c);
        let wide = c * repeat;
        let block = wide * (BLOCK / wide).max(BLOCK_ROWS);
        Self {
            repeat,
            block,
            task: block * (TASK / block).max(TASK_BLOCKS),
        }
    }

    /// The value of each channel for each number of a wide row.
    pub(super) fn tile(&self, values: &[f32]) -> Vec<f32> {
        values.repeat(self.repeat)
    }

    /// A wide row of zeros, of `c` channels.
    pub(super) fn zeros(&self, c: usize) -> Vec<f32> {
        vec![0.0; c * self.repeat]
    }

    /// Adds up the rows of a wide row, in `f64`.
    pub(super) fn fold(&self, wide: &[f32], c: usize) -> Vec<f64> {
        let mut sum = vec![0f64; c];
        for row in wide.chunks_exact(c) {
            for (s, &v) in sum.iter_mut().zip(row) {
                *s += v as f64;
            }
        }
        sum
    }
}
