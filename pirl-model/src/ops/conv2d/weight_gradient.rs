//! The gradient with respect to the weight: for every tap a product of the transposed input with the
//! output's gradient, over all pixels.
//!
//! Both sides are packed, pixel after pixel, before they are multiplied. Reading the input where it
//! lies, as the other products do, would walk over pixels a power of two apart, which share a few
//! sets of the first-level cache.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Kernel, Strides};
use super::lane::lanes;
use super::plan::{self, Group, Plan};
use super::scratch;
use super::shape::{ConvShape, TASKS};
use crate::ops::Element;

/// Destination pixels summed in registers before they are added to memory, an even number: a packed
/// panel of them is 16 KiB or a little more.
const BLOCK: usize = 256;
/// Rows packed at a time, at most: whole tiles of every instruction set, and with [`BLOCK`] pixels they
/// fit the second-level cache.
pub(super) const SPAN: usize = 180; // 4 * 45, 6 * 30, 10 * 18
/// Pixels below which a private sum is not worth its memory traffic.
const CHUNK: usize = 512;
/// Numbers that all private sums have together, at most.
pub(super) const PRIVATE: usize = 1 << 23;

/// Writes the gradient to `dw`; the slices have the lengths that `s` says.
pub(super) fn compute<K: Kernel, T: Element>(s: &ConvShape, x: &[T], dy: &[T], dw: &mut [f32]) {
    if dw.is_empty() {
        return;
    }
    let (oh, ow) = s.out_hw();
    let pixels = s.n * oh * ow;
    if pixels == 0 {
        return dw.fill(0.0);
    }
    let work = Work::<K>::new(s, pixels);
    let tasks = (0..work.chunks.len() * work.shares()).into_par_iter();
    let mut sums: Vec<Vec<f32>> = tasks.map(|task| work.sum(task, x, dy)).collect();
    let totals = add_chunks(&mut sums, work.shares());
    let (taps, panels) = (s.kernel * s.kernel, work.panels());
    dw.par_chunks_mut(K::WIDTH * work.rows)
        .enumerate()
        .for_each(|(p, dw)| {
            unpack(dw, s.c_in, taps, K::WIDTH, |row| {
                let total = &totals[row / work.share];
                let panel = total.len() / panels;
                &total[p * panel + row % work.share * K::WIDTH..][..K::WIDTH]
            });
        });
}

/// The gradient cut into tasks: `chunks` of the pixels, each with its own sum, by shares of the rows.
struct Work<K> {
    plan: Plan,
    /// Channels of the input and of the output.
    channels: (usize, usize),
    /// Rows of the packed gradient, taps by input channels.
    rows: usize,
    /// Rows of a share, whole tiles.
    share: usize,
    chunks: Vec<Vec<Group>>,
    kernel: PhantomData<fn() -> K>,
}

impl<K: Kernel> Work<K> {
    /// Of a gradient that is not empty, over `pixels`, at least one.
    fn new(s: &ConvShape, pixels: usize) -> Self {
        let (plan, rows) = (Plan::forward(s), s.kernel * s.kernel * s.c_in);
        let private = PRIVATE / (rows * s.c_out.div_ceil(K::WIDTH) * K::WIDTH);
        let chunks = plan.chunks(TASKS.min(pixels / CHUNK).min(private).max(1));
        let share = rows
            .div_ceil(TASKS.div_ceil(chunks.len()))
            .next_multiple_of(K::ROWS);
        Self {
            plan,
            channels: (s.c_in, s.c_out),
            rows,
            share,
            chunks,
            kernel: PhantomData,
        }
    }

    fn shares(&self) -> usize {
        self.rows.div_ceil(self.share)
    }

    /// Panels of output channels.
    fn panels(&self) -> usize {
        self.channels.1.div_ceil(K::WIDTH)
    }

    /// The sum of a task, a panel after the other, each with `K::WIDTH` numbers for every row of the
    /// task's share.
    fn sum<T: Element>(&self, task: usize, x: &[T], dy: &[T]) -> Vec<f32> {
        let (chunk, first) = (
            &self.chunks[task / self.shares()],
            task % self.shares() * self.share,
        );
        let rows = first..(first + self.share).min(self.rows);
        let panels = self.panels() * K::WIDTH;
        let mut sum = vec![0f32; rows.len() * panels];
        let block = lanes::<K::Lane>(BLOCK);
        scratch::with(block * (panels + SPAN), |scratch: &mut [K::Lane]| {
            let (gradients, inputs) = scratch.split_at_mut(block * panels);
            let mut packed = Packed { inputs, gradients };
            for group in chunk {
                self.add_group(group, &rows, (x, dy), &mut packed, &mut sum);
            }
        });
        sum
    }

    /// Adds the products of a group's pixels to the sum of `rows`.
    fn add_group<T: Element>(
        &self,
        group: &Group,
        rows: &Range<usize>,
        (x, dy): (&[T], &[T]),
        packed: &mut Packed<'_, K::Lane>,
        sum: &mut [f32],
    ) {
        let (c_in, c_out) = self.channels;
        let source = self.plan.source_pixels(group);
        let destination = self.plan.destination_pixels(group);
        let x = &x[source.start * c_in..source.end * c_in];
        let dy = &dy[destination.start * c_out..destination.end * c_out];
        self.plan.visit(group, |segments, pixels| {
            for block in pixels.chunks(BLOCK) {
                // SAFETY: the kernel's set is available, as every caller takes it from `Isa`.
                unsafe { K::pack_columns(block, dy, c_out, packed.gradients) };
                for segment in plan::within(segments, rows, SPAN) {
                    let x = &x[segment.source..];
                    // SAFETY: as above.
                    unsafe { K::pack_rows(block, x, segment.len, packed.inputs) };
                    let first = segment.weight - rows.start;
                    let depth = lanes::<K::Lane>(block.len());
                    self.add_products(packed, depth, first..first + segment.len, sum);
                }
            }
        });
    }

    /// Adds the product of what is packed, `depth` lanes deep, to rows `place` of the sum.
    fn add_products(
        &self,
        packed: &Packed<'_, K::Lane>,
        depth: usize,
        place: Range<usize>,
        sum: &mut [f32],
    ) {
        let panel = sum.len() / self.panels();
        let strides = Strides {
            tile: K::ROWS * depth,
            x: K::ROWS,
            dy: K::WIDTH,
        };
        for p in 0..self.panels() {
            // SAFETY: the set is available, as every caller takes it from `Isa`. The inputs have as
            // many rows as `place`, filled up to whole tiles, of `depth` lanes; the gradients have
            // `depth` times `WIDTH` for each panel; `sum` has `WIDTH` numbers for each of the task's
            // rows in each panel, `place` among them.
            unsafe {
                K::outer(
                    depth,
                    &strides,
                    packed.inputs.as_ptr(),
                    place.len(),
                    packed.gradients.as_ptr().add(p * depth * K::WIDTH),
                    sum.as_mut_ptr().add(p * panel + place.start * K::WIDTH),
                );
            }
        }
    }
}

/// Both sides of the products over a block of pixels.
struct Packed<'a, L> {
    inputs: &'a mut [L],
    gradients: &'a mut [L],
}

/// Adds up the sums of the chunks, in their order: `sums` has the shares of one chunk after those of
/// another. The totals are where the first chunk's sums were.
pub(super) fn add_chunks(sums: &mut [Vec<f32>], shares: usize) -> &[Vec<f32>] {
    let (totals, rest) = sums.split_at_mut(shares);
    totals
        .par_iter_mut()
        .enumerate()
        .for_each(|(share, total)| {
            for sum in rest.iter().skip(share).step_by(shares) {
                for (total, x) in total.iter_mut().zip(sum) {
                    *total += x;
                }
            }
        });
    totals
}

/// Restores PyTorch's layout `(c_out, c_in, taps)` of a panel from its rows, `taps` by `c_in`.
pub(super) fn unpack<'a>(
    dw: &mut [f32],
    c_in: usize,
    taps: usize,
    width: usize,
    row: impl Fn(usize) -> &'a [f32],
) {
    /// Input channels at a time. Single numbers would go to places a power of two apart.
    const CHANNELS: usize = 8;
    let mut turned = vec![0f32; width * CHANNELS * taps];
    for first in (0..c_in).step_by(CHANNELS) {
        let len = CHANNELS.min(c_in - first) * taps;
        for (i, tap) in (0..len / taps).flat_map(|i| (0..taps).map(move |tap| (i, tap))) {
            let to = turned[i * taps + tap..].iter_mut().step_by(CHANNELS * taps);
            for (to, x) in to.zip(row(tap * c_in + first + i)) {
                *to = *x;
            }
        }
        for (dw, turned) in dw
            .chunks_exact_mut(c_in * taps)
            .zip(turned.chunks_exact(CHANNELS * taps))
        {
            dw[first * taps..][..len].copy_from_slice(&turned[..len]);
        }
    }
}
