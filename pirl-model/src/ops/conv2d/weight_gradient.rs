//! The gradient with respect to the weight: for every tap a product of the transposed input with the
//! output's gradient, over all pixels.
//!
//! Both sides are packed, pixel after pixel, before they are multiplied. Reading the input where it
//! lies, as the other products do, would walk over pixels a power of two apart, which share a few
//! sets of the first-level cache.

use rayon::prelude::*;

use super::kernel::Kernel;
use super::lane::lanes;
use super::{ConvShape, Element, TASKS, plan, plan::Plan, scratch};

/// Destination pixels summed in registers before they are added to memory, an even number: a packed
/// panel of them is 16 KiB or a little more.
const BLOCK: usize = 256;
/// Rows packed at a time, at most: whole tiles of every instruction set, and with [`BLOCK`] pixels they
/// fit the second-level cache.
const SPAN: usize = 180; // 4 * 45, 6 * 30, 10 * 18
/// Pixels below which a private sum is not worth its memory traffic.
const CHUNK: usize = 512;
/// Numbers that all private sums have together, at most.
const PRIVATE: usize = 1 << 23;

/// Writes the gradient to `dw`; the slices have the lengths that `s` says.
pub(super) fn compute<K: Kernel, T: Element>(s: &ConvShape, x: &[T], dy: &[T], dw: &mut [f32]) {
    let taps = s.kernel * s.kernel;
    let (rows, width) = (taps * s.c_in, K::WIDTH);
    let panels = s.c_out.div_ceil(width);
    if rows * panels == 0 {
        return;
    }
    let plan = Plan::forward(s);
    let (oh, ow) = s.out_hw();
    let pixels = s.n * oh * ow;
    if pixels == 0 {
        return dw.fill(0.0);
    }

    // Tasks: `chunks` of the pixels, each with its own sum, by `shares` of the rows.
    let private = PRIVATE / (rows * panels * width);
    let chunks = plan.chunks(TASKS.min(pixels / CHUNK).min(private).max(1));
    let share = rows
        .div_ceil(TASKS.div_ceil(chunks.len()))
        .next_multiple_of(K::ROWS);
    let shares = rows.div_ceil(share);
    let mut sums: Vec<Vec<f32>> = (0..chunks.len() * shares)
        .into_par_iter()
        .map(|task| {
            let (chunk, first) = (&chunks[task / shares], task % shares * share);
            let mine = first..(first + share).min(rows);
            // A panel after the other, each with `width` numbers for every row of this task.
            let panel = mine.len() * width;
            let mut sum = vec![0f32; panels * panel];
            let room = lanes::<K::Lane>(BLOCK);
            scratch::with(
                room * (panels * width + SPAN),
                |scratch: &mut [K::Lane]| {
                    let (gradients, packed) = scratch.split_at_mut(room * panels * width);
                    for group in chunk {
                        let (source, destination) =
                            (plan.source_pixels(group), plan.destination_pixels(group));
                        let x = &x[source.start * s.c_in..source.end * s.c_in];
                        let dy = &dy[destination.start * s.c_out..destination.end * s.c_out];
                        plan.visit(group, |segments, pixels| {
                            for block in pixels.chunks(BLOCK) {
                                let depth = lanes::<K::Lane>(block.len());
                                // SAFETY: the kernel's set is available, as every caller takes it
                                // from `Isa`.
                                unsafe { K::pack_columns(block, dy, s.c_out, gradients) };
                                for segment in plan::within(segments, &mine, SPAN) {
                                    let x = &x[segment.source..];
                                    // SAFETY: as above.
                                    unsafe { K::pack_rows(block, x, segment.len, packed) };
                                    let first = (segment.weight - mine.start) * width;
                                    for p in 0..panels {
                                        // SAFETY: the set is available. `packed` has `len` rows, filled
                                        // up to whole tiles, of `depth` numbers; `gradients` has
                                        // `depth` times `width` for each panel; `sum` has `width`
                                        // numbers for each of this task's rows, and belongs to it.
                                        unsafe {
                                            K::outer(
                                                depth,
                                                packed.as_ptr(),
                                                segment.len,
                                                gradients.as_ptr().add(p * depth * width),
                                                sum.as_mut_ptr().add(p * panel + first),
                                            );
                                        }
                                    }
                                }
                            }
                        });
                    }
                },
            );
            sum
        })
        .collect();

    // Adds the chunks in order.
    let (first, rest) = sums.split_at_mut(shares);
    first.par_iter_mut().enumerate().for_each(|(share, total)| {
        for sum in rest.iter().skip(share).step_by(shares) {
            for (total, x) in total.iter_mut().zip(sum) {
                *total += x;
            }
        }
    });
    dw.par_chunks_mut(width * rows)
        .enumerate()
        .for_each(|(p, dw)| {
            unpack(dw, s.c_in, taps, width, |at| {
                let sum = &first[at / share];
                let panel = sum.len() / panels;
                &sum[p * panel + at % share * width..][..width]
            });
        });
}

/// Restores PyTorch's layout `(c_out, c_in, taps)` of a panel from its rows, `taps` by `c_in`.
fn unpack<'a>(
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
