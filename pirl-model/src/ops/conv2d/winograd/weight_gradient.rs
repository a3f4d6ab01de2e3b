//! The gradient with respect to the weight: F(3x3, 2x2) and F(3x3, 4x4), whose taps are the output's
//! gradient. Both sides of a tile are transformed, the products of all tiles are added up, and the sums
//! are transformed to the nine taps at the end.

use rayon::prelude::*;

use super::super::kernel::{Kernel, Strides};
use super::super::scratch;
use super::super::shape::{ConvShape, TASKS};
use super::super::weight_gradient::{PRIVATE, add_chunks, unpack};
use super::transform::Tiles;
use super::{Grid, Matrices, pixels, products, square, stride, transform_channels};
use crate::ops::Element;

/// Tiles whose products are summed in registers before they are added to memory.
const BLOCK: usize = 48;
/// Input channels of a task, where there are tasks enough, and where there are not: whole registers, and so
/// many that the other side, which each share transforms for itself, costs little.
const SHARE: [usize; 2] = [64, 32];
/// Tiles below which a private sum is not worth its memory traffic.
const CHUNK: usize = 96;

/// Writes the gradient to `dw`; `s` is of 3x3 taps, stride 1 and a padding of at most 2, and the
/// slices have the lengths it says.
pub(in super::super) fn compute<K: Kernel<Lane = f32>, W: Tiles, E: Element>(
    s: &ConvShape,
    x: &[E],
    dy: &[E],
    dw: &mut [f32],
) {
    if dw.is_empty() {
        return;
    }
    if dy.is_empty() {
        return dw.fill(0.0);
    }
    let work = Work::new::<K, W>(s);
    let tasks = (0..work.chunks * work.shares).into_par_iter();
    let mut sums: Vec<Vec<f32>> = tasks.map(|task| work.sum::<K, W, E>(task, x, dy)).collect();
    let totals = add_chunks(&mut sums, work.shares);
    let panels = s.c_out.div_ceil(K::WIDTH);
    dw.par_chunks_mut(K::WIDTH * 9 * s.c_in)
        .enumerate()
        .for_each(|(p, dw)| {
            unpack(dw, s.c_in, 9, K::WIDTH, |row| {
                let (tap, channel) = (row / s.c_in, row % s.c_in);
                let (share, place) = work.share_of(channel);
                let rows = work.channels(share).len();
                &totals[share][((tap * panels + p) * rows + place) * K::WIDTH..][..K::WIDTH]
            });
        });
}

/// The gradient cut into tasks: `chunks` of the tiles, each with its own sum, by `shares` of the input
/// channels. The cut depends on the sizes alone.
struct Work<'a> {
    s: &'a ConvShape,
    grid: Grid,
    tiles: usize,
    chunks: usize,
    shares: usize,
    /// Input channels of a share but the last.
    share: usize,
}

impl<'a> Work<'a> {
    fn new<K: Kernel, W: Tiles>(s: &'a ConvShape) -> Self {
        let (h, w) = s.out_hw();
        let grid = Grid::new::<W>((h, w, s.c_out));
        let tiles = s.n * grid.len();
        let private = PRIVATE / (9 * s.c_in * s.c_out.next_multiple_of(K::WIDTH));
        let chunks = TASKS.min(tiles / CHUNK).min(private).max(1);
        let enough = chunks * s.c_in.div_ceil(SHARE[0]) >= TASKS;
        let share = SHARE[usize::from(!enough)];
        Self {
            s,
            grid,
            tiles,
            chunks,
            shares: s.c_in.div_ceil(share),
            share,
        }
    }

    /// The share of an input channel, and its place there.
    fn share_of(&self, channel: usize) -> (usize, usize) {
        (channel / self.share, channel % self.share)
    }

    fn channels(&self, share: usize) -> std::ops::Range<usize> {
        share * self.share..((share + 1) * self.share).min(self.s.c_in)
    }

    /// The sum of a task: for each tap and panel of output channels, `K::WIDTH` numbers for every input
    /// channel of the share.
    fn sum<K: Kernel<Lane = f32>, W: Tiles, E: Element>(
        &self,
        task: usize,
        x: &[E],
        dy: &[E],
    ) -> Vec<f32> {
        let (chunk, share) = (task / self.shares, task % self.shares);
        let (s, channels) = (self.s, self.channels(share));
        let tiles = chunk * self.tiles / self.chunks..(chunk + 1) * self.tiles / self.chunks;
        let (oh, ow) = s.out_hw();
        let panels = s.c_out.div_ceil(K::WIDTH);
        // The last tile of input channels is read whole.
        let inputs = Matrices::new(BLOCK, stride::<K>(channels.len() + K::ROWS));
        let gradients = Matrices::new(BLOCK, stride::<K>(s.c_out));
        let sum = channels.len() * panels * K::WIDTH;
        let len = W::PRODUCTS * (inputs.step + gradients.step + sum);
        let spare = s.c_in.max(s.c_out);
        let mut total = vec![0f32; 9 * sum];
        scratch::with(len + spare, |scratch: &mut [f32]| {
            let (x_tiles, rest) = scratch.split_at_mut(W::PRODUCTS * inputs.step);
            let (dy_tiles, rest) = rest.split_at_mut(W::PRODUCTS * gradients.step);
            let (sums, zeros) = rest.split_at_mut(W::PRODUCTS * sum);
            sums.fill(0.0);
            zeros.fill(0.0);
            // Zeros of any type.
            let zeros = zeros.as_ptr().cast::<E>();
            for start in tiles.clone().step_by(BLOCK) {
                let block = start..(start + BLOCK).min(tiles.end);
                for (row, tile) in block.clone().enumerate() {
                    let place = self.grid.place(tile);
                    let shape = (s.h, s.w, s.c_in);
                    let from = pixels(x, shape, place, s.padding, zeros);
                    // Those outside begin with zeros as well.
                    let from = from.map(|row| row.map(|from| from.wrapping_add(channels.start)));
                    let to = products::<W>(&mut x_tiles[row * inputs.stride..], inputs.step);
                    // SAFETY: every caller takes the kernel's set from `Isa`; pixels, and the zeros,
                    // have all channels, and rows of the matrices are filled up to whole registers.
                    unsafe { transform_channels::<K, E, W::Input>(&from, &to, channels.len()) };
                    let from = pixels(dy, (oh, ow, s.c_out), place, 0, zeros);
                    let to = products::<W>(&mut dy_tiles[row * gradients.stride..], gradients.step);
                    // SAFETY: as above.
                    unsafe { transform_channels::<K, E, W::Gradient>(&from, &to, s.c_out) };
                }
                let strides = Strides {
                    tile: K::ROWS,
                    x: inputs.stride,
                    dy: gradients.stride,
                };
                for product in 0..W::PRODUCTS {
                    for panel in 0..panels {
                        let sums = &mut sums[product * sum + panel * channels.len() * K::WIDTH..];
                        // SAFETY: the kernel's set is available, as above. Rows of the inputs reach a
                        // tile beyond the share, those of the gradients have whole panels, and the
                        // sums `WIDTH` numbers for each channel of the share.
                        unsafe {
                            K::outer(
                                block.len(),
                                &strides,
                                x_tiles[product * inputs.step..].as_ptr(),
                                channels.len(),
                                dy_tiles[product * gradients.step + panel * K::WIDTH..].as_ptr(),
                                sums.as_mut_ptr(),
                            );
                        }
                    }
                }
            }
            let from = products::<W>(sums, sum).map(|row| row.map(<*mut f32>::cast_const));
            let total = total.as_mut_ptr();
            let to = square(|row, column| match row < 3 && column < 3 {
                // SAFETY: one of nine equal parts.
                true => unsafe { total.add((row * 3 + column) * sum) },
                false => total,
            });
            // SAFETY: the kernel's set is available, as above; a sum is whole panels, so whole
            // registers.
            unsafe { K::transform::<f32, W::WeightGradient>(&from, &to, sum / K::LANES) };
        });
        total
    }
}
