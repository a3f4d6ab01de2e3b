//! Convolutions of 3x3 taps and stride 1 by Winograd's minimal filtering: fewer products, for transforms
//! before and after them. Whatever type activations are stored in, all is computed in `f32`. See `transform` for the arithmetic and `choice` for when it pays.
//!
//! A task has some tiles of the output and some of its channels. It transforms its tiles of the input,
//! multiplies the 16 or 36 matrices (tiles, input channels) that this makes with those of the
//! transformed weight by the kernel of the direct way, and transforms the products back. Both sets of
//! matrices are a thread's own working memory of about a MiB; nothing as large as an activation is ever
//! stored.

mod choice;
pub(super) mod transform;
mod weight_gradient;

use std::array;
use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

use candle_core::DType;
use rayon::prelude::*;

use super::kernel::{Kernel, MAX_PANEL};
use super::plan::{self, Row, Segment};
use super::shape::{ConvShape, TASKS};
use super::{DEPTH, Finish, Shared, pack, rounded, scratch};
use crate::ops::Element;
use crate::ops::element::narrow;
pub use choice::Winograd;
#[cfg(test)]
pub(super) use choice::possible;
pub(super) use choice::{Product, Way};
use transform::{Square, Tiles};
pub(super) use weight_gradient::compute as backward_weight;

/// `out = x * weight`, each output channel of the weight multiplied by its `scale`, then `finish`.
///
/// `s` is of 3x3 taps, stride 1 and a padding of at most 2; the slices have the lengths it says.
pub(super) fn forward<K: Kernel<Lane = f32>, W: Tiles, E: Element>(
    s: &ConvShape,
    x: &[E],
    weight: &[f32],
    scale: Option<&[f32]>,
    finish: Option<&Finish<'_, E>>,
    out: &mut [E],
) {
    let weights = |i: usize, first: usize, taps: &mut [[f32; 9]]| {
        for (o, taps) in (first..).zip(taps) {
            let scale = scale.map_or(1.0, |scale| scale[o]);
            let from = &weight[(o * s.c_in + i) * 9..][..9];
            *taps = array::from_fn(|tap| rounded::<E>(scale * from[tap]));
        }
    };
    let maps = Maps {
        source: (s.h, s.w, s.c_in),
        destination: (s.out_hw().0, s.out_hw().1, s.c_out),
        padding: s.padding,
    };
    product::<K, W, E>(&maps, x, weights, out, finish);
}

/// The gradient with respect to the input: the convolution of `dy` with the taps turned around.
///
/// `s` and the slices as for [`forward`].
pub(super) fn backward_input<K: Kernel<Lane = f32>, W: Tiles, E: Element>(
    s: &ConvShape,
    weight: &[f32],
    dy: &[E],
    dx: &mut [E],
) {
    let weights = |o: usize, first: usize, taps: &mut [[f32; 9]]| {
        for (i, taps) in (first..).zip(taps) {
            let from = &weight[(o * s.c_in + i) * 9..][..9];
            *taps = array::from_fn(|tap| rounded::<E>(from[8 - tap]));
        }
    };
    let maps = Maps {
        source: (s.out_hw().0, s.out_hw().1, s.c_out),
        destination: (s.h, s.w, s.c_in),
        padding: 2 - s.padding,
    };
    product::<K, W, E>(&maps, dy, weights, dx, None);
}

/// The transformed weight from all source channels to some of the destination's: panels as of [`pack`],
/// each with a matrix for every product of a tile, [`step`] apart, of a row for every source channel.
/// `weights` writes the nine taps from a source channel to each of some destination channels, from the
/// first one given.
fn pack_weight<K: Kernel<Lane = f32>, W: Tiles>(
    sources: usize,
    destinations: Range<usize>,
    weights: impl Fn(usize, usize, &mut [[f32; 9]]) + Sync,
) -> Vec<f32> {
    let step = step(sources, K::WIDTH);
    let start = destinations.start;
    pack::<K>(
        W::PRODUCTS * step,
        destinations.len(),
        |panel, first, columns| {
            let mut taps = [[0.0; 9]; MAX_PANEL];
            let mut turned = [[0.0; MAX_PANEL]; 9];
            for source in 0..sources {
                weights(source, start + first, &mut taps[..columns]);
                for (column, taps) in taps[..columns].iter().enumerate() {
                    for (turned, tap) in turned.iter_mut().zip(taps) {
                        turned[column] = *tap;
                    }
                }
                let from = square(|row, column| {
                    let tap = if row < 3 && column < 3 {
                        row * 3 + column
                    } else {
                        0
                    };
                    turned[tap].as_ptr()
                });
                let to = products::<W>(&mut panel[source * K::WIDTH..], step);
                // SAFETY: the kernel's set is available, as every caller takes it from `Isa`. A row of
                // `turned` has `MAX_PANEL` numbers, and each row of the panel `WIDTH`.
                unsafe { K::transform::<f32, W::Weight>(&from, &to, K::WIDTH / K::LANES) };
            }
        },
    )
}

/// Something for each place of a square.
fn square<P>(mut place: impl FnMut(usize, usize) -> P) -> Square<P> {
    array::from_fn(|row| array::from_fn(|column| place(row, column)))
}

/// Places of `memory` a `step` apart for the products of a tile; those beyond them repeat the first.
fn products<W: Tiles>(memory: &mut [f32], step: usize) -> Square<*mut f32> {
    assert!(
        memory.len() > (W::PRODUCTS - 1) * step,
        "memory of the products of a tile"
    );
    let memory = memory.as_mut_ptr();
    square(|row, column| match row < W::IN && column < W::IN {
        // SAFETY: less than the length just checked.
        true => unsafe { memory.add((row * W::IN + column) * step) },
        false => memory,
    })
}

/// Source and destination of a product: height, width and channels.
struct Maps {
    source: (usize, usize, usize),
    destination: (usize, usize, usize),
    /// Zeros before the first row and column of the source, and as many as it takes after the last.
    padding: usize,
}

/// Where a tile begins.
#[derive(Clone, Copy)]
struct Place {
    image: usize,
    y: usize,
    x: usize,
}

/// The tiles of a batch of maps, in order.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    columns: usize,
    side: usize,
}

impl Grid {
    /// Of the maps of `(height, width, channels)`.
    fn new<W: Tiles>((h, w, _): (usize, usize, usize)) -> Self {
        Self {
            rows: h.div_ceil(W::OUT),
            columns: w.div_ceil(W::OUT),
            side: W::OUT,
        }
    }

    /// Tiles of an image.
    fn len(&self) -> usize {
        self.rows * self.columns
    }

    fn place(&self, tile: usize) -> Place {
        let (image, tile) = (tile / self.len(), tile % self.len());
        Place {
            image,
            y: tile / self.columns * self.side,
            x: tile % self.columns * self.side,
        }
    }
}

/// Where the numbers of each pixel of a square lie in `map`, of `(height, width, channels)`, beginning
/// at `place` less `before` in both directions; those outside the map are at `outside`.
fn pixels<E>(
    map: &[E],
    (h, w, c): (usize, usize, usize),
    place: Place,
    before: usize,
    outside: *const E,
) -> Square<*const E> {
    square(|row, column| {
        let y = (place.y + row).checked_sub(before).filter(|&y| y < h);
        let x = (place.x + column).checked_sub(before).filter(|&x| x < w);
        match (y, x) {
            (Some(y), Some(x)) => map[((place.image * h + y) * w + x) * c..].as_ptr(),
            _ => outside,
        }
    })
}

/// Transforms `channels` numbers at each of the places `from` by `T`, writing whole registers.
///
/// # Safety
/// As for [`Kernel::transform`], but that only `channels` numbers need be readable.
unsafe fn transform_channels<K: Kernel, E: Element, T: transform::Transform>(
    from: &Square<*const E>,
    to: &Square<*mut f32>,
    channels: usize,
) {
    let whole = channels / K::LANES;
    let (done, rest) = (whole * K::LANES, channels % K::LANES);
    // SAFETY: the caller's promises for the whole registers; what is left over is copied first.
    unsafe {
        K::transform::<E, T>(from, to, whole);
        if rest > 0 {
            let mut last = square(|_, _| [E::from_f32(0.0); MAX_PANEL]);
            for row in 0..T::FROM {
                for column in 0..T::FROM {
                    let from = from[row][column].add(done);
                    from.copy_to_nonoverlapping(last[row][column].as_mut_ptr(), rest);
                }
            }
            let from = square(|row, column| last[row][column].as_ptr());
            // What is beyond the transform may be beyond the memory.
            let to = square(|row, column| to[row][column].wrapping_add(done));
            K::transform::<E, T>(&from, &to, 1);
        }
    }
}

/// Numbers from one row of a matrix to the next: whole panels, and an odd number of cache lines, so
/// that rows do not share a few sets of the caches.
fn stride<K: Kernel>(channels: usize) -> usize {
    let line = 16;
    let padded = channels.next_multiple_of(K::WIDTH);
    padded
        + if (padded / line).is_multiple_of(2) {
            line
        } else {
            0
        }
}

/// Numbers from one matrix of so many rows to the next, an odd number of cache lines as well.
fn step(rows: usize, stride: usize) -> usize {
    let numbers = rows * stride;
    numbers
        + if (numbers / 16).is_multiple_of(2) {
            16
        } else {
            0
        }
}

/// How a part of a product is cut into tasks. It depends on the sizes alone, never on the number of
/// threads.
struct Cut {
    /// Tiles of a task.
    tiles: usize,
    groups: usize,
    /// Of the panels.
    shares: usize,
}

impl Cut {
    /// Of so many tiles, source channels and panels, in at least `tasks` where the sizes allow.
    fn new<K: Kernel, W: Tiles>(tiles: usize, sources: usize, panels: usize, tasks: usize) -> Self {
        /// Numbers of a task's matrices, at most, unless that is less than the least number of tiles.
        const MATRICES: usize = 1 << 18;
        /// Below, reading the weight takes longer than multiplying with it.
        const LEAST: usize = 24;
        let of_tile = W::PRODUCTS * (sources + panels * K::WIDTH);
        let most = (MATRICES / of_tile).max(LEAST);
        let each = tiles
            .div_ceil(tiles.div_ceil(most))
            .next_multiple_of(K::ROWS);
        let groups = tiles.div_ceil(each);
        Self {
            tiles: each,
            groups,
            shares: tasks.div_ceil(groups).min(panels),
        }
    }
}

/// `out` = the convolution of `x` with the weights, see [`pack_weight`], then `finish`.
fn product<K: Kernel<Lane = f32>, W: Tiles, E: Element>(
    maps: &Maps,
    x: &[E],
    weights: impl Fn(usize, usize, &mut [[f32; 9]]) + Sync,
    out: &mut [E],
    finish: Option<&Finish<'_, E>>,
) {
    /// Numbers of the transformed weight at a time, at most, where a panel has less: 12 MiB, which stay in
    /// the third-level cache while one group of tiles after another passes.
    const PACKED: usize = 3 << 20;
    let (h, w, channels) = maps.destination;
    if out.is_empty() {
        return;
    }
    let sources = maps.source.2;
    let grid = Grid::new::<W>(maps.destination);
    let tiles = out.len() / (h * w * channels) * grid.len();
    let out = Shared(out.as_mut_ptr());
    let most = (PACKED / (W::PRODUCTS * step(sources, K::WIDTH))).max(1);
    let panels = channels.div_ceil(K::WIDTH);
    let parts = panels.div_ceil(most);
    let part = panels.div_ceil(parts) * K::WIDTH;
    for start in (0..channels).step_by(part) {
        let part = start..(start + part).min(channels);
        let packed = pack_weight::<K, W>(sources, part.clone(), &weights);
        let panels = part.len().div_ceil(K::WIDTH);
        let cut = Cut::new::<K, W>(tiles, sources, panels, TASKS.div_ceil(parts));
        let task = |task: usize| {
            let (share, group) = (task / cut.groups, task % cut.groups);
            let panels = share * panels / cut.shares..(share + 1) * panels / cut.shares;
            let columns = start + panels.start * K::WIDTH..start + panels.end * K::WIDTH;
            let task = Task::<K> {
                maps,
                grid,
                panels: panels.clone(),
                columns: columns.start..columns.end.min(channels),
                tiles: group * cut.tiles..((group + 1) * cut.tiles).min(tiles),
                source: Matrices::new(cut.tiles, stride::<K>(sources)),
                result: Matrices::new(cut.tiles, stride::<K>(panels.len() * K::WIDTH)),
                kernel: PhantomData,
            };
            // SAFETY: groups are disjoint in tiles and shares in channels, so no two tasks access one
            // number of `out`, whose length is that of the destination.
            unsafe { task.run::<W, E>(x, &packed, out.pointer(), finish) };
        };
        (0..cut.groups * cut.shares).into_par_iter().for_each(task);
    }
}

/// The layout of the matrices of a task, a row for each tile.
#[derive(Clone, Copy)]
struct Matrices {
    stride: usize,
    /// From one matrix to the next.
    step: usize,
}

impl Matrices {
    fn new(rows: usize, stride: usize) -> Self {
        Self {
            stride,
            step: step(rows, stride),
        }
    }
}

struct Task<'a, K> {
    maps: &'a Maps,
    grid: Grid,
    /// Of the packed weight.
    panels: Range<usize>,
    /// Their channels.
    columns: Range<usize>,
    tiles: Range<usize>,
    source: Matrices,
    result: Matrices,
    kernel: PhantomData<fn() -> K>,
}

impl<K: Kernel<Lane = f32>> Task<'_, K> {
    /// # Safety
    /// `out` is writable at this task's columns of every pixel of its tiles, by this task alone.
    unsafe fn run<W: Tiles, E: Element>(
        &self,
        x: &[E],
        packed: &[f32],
        out: *mut E,
        finish: Option<&Finish<'_, E>>,
    ) {
        let channels = self.maps.source.2;
        let len = W::PRODUCTS * (self.source.step + self.result.step);
        let spare = channels.max(W::OUT * W::OUT * self.panels.len() * K::WIDTH);
        scratch::with(len + spare, |scratch: &mut [f32]| {
            let (sources, rest) = scratch.split_at_mut(W::PRODUCTS * self.source.step);
            let (results, spare) = rest.split_at_mut(W::PRODUCTS * self.result.step);
            spare[..channels].fill(0.0);
            for (row, tile) in self.tiles.clone().enumerate() {
                let place = self.grid.place(tile);
                let from = pixels(
                    x,
                    self.maps.source,
                    place,
                    self.maps.padding,
                    spare.as_ptr().cast(), // zeros of any type
                );
                let to = products::<W>(&mut sources[row * self.source.stride..], self.source.step);
                // SAFETY: every caller takes the kernel's set from `Isa`; pixels have `channels`
                // numbers, and rows of the matrices are filled up to whole registers.
                unsafe { transform_channels::<K, E, W::Input>(&from, &to, channels) };
            }
            self.multiply::<W>(sources, packed, results);
            for (row, tile) in self.tiles.clone().enumerate() {
                let place = self.grid.place(tile);
                let results = &mut results[row * self.result.stride..];
                // SAFETY: the caller's promise is passed on.
                unsafe { self.write::<W, E>(place, results, out, spare, finish) };
            }
        });
    }

    /// Multiplies each matrix of `sources` with that of the weight.
    fn multiply<W: Tiles>(&self, sources: &[f32], packed: &[f32], results: &mut [f32]) {
        let channels = self.maps.source.2;
        let rows = (0..self.tiles.len()).map(|row| Row {
            source: row * self.source.stride,
            destination: row * self.result.stride,
        });
        let rows: Vec<Row> = rows.collect();
        let whole = Segment {
            source: 0,
            weight: 0,
            len: channels,
        };
        let parts = plan::cut(&[whole], DEPTH);
        let matrix = step(channels, K::WIDTH);
        for product in 0..W::PRODUCTS {
            let sources = &sources[product * self.source.step..];
            let results = &mut results[product * self.result.step..];
            for (part, segments) in parts.iter().enumerate() {
                for (place, panel) in self.panels.clone().enumerate() {
                    let panel = &packed[(panel * W::PRODUCTS + product) * matrix..][..matrix];
                    // SAFETY: the kernel's set is available, as above. A row of a source has
                    // `channels` numbers, the panel `WIDTH` for each of them, and a row of a
                    // result `WIDTH` for each panel of this task.
                    unsafe {
                        K::gather(
                            &rows,
                            segments,
                            sources.as_ptr(),
                            panel.as_ptr(),
                            results.as_mut_ptr().add(place * K::WIDTH),
                            K::WIDTH,
                            part > 0,
                        );
                    }
                }
            }
        }
    }

    /// Transforms the results of a tile and writes them to this task's columns of its pixels.
    ///
    /// # Safety
    /// As for [`Task::run`].
    unsafe fn write<W: Tiles, E: Element>(
        &self,
        place: Place,
        results: &mut [f32],
        out: *mut E,
        spare: &mut [f32],
        finish: Option<&Finish<'_, E>>,
    ) {
        let (h, w, channels) = self.maps.destination;
        let (first, len) = (self.columns.start, self.columns.len());
        let registers = len.div_ceil(K::LANES);
        let pixel = |row: usize, column: usize| {
            let (y, x) = (place.y + row, place.x + column);
            let inside = row < W::OUT && column < W::OUT && y < h && x < w;
            inside.then(|| ((place.image * h + y) * w + x) * channels)
        };
        let inside = (0..W::OUT).flat_map(|row| (0..W::OUT).map(move |column| (row, column)));
        let inside = inside.filter_map(|(row, column)| Some((row, column, pixel(row, column)?)));
        let from =
            products::<W>(results, self.result.step).map(|row| row.map(<*mut f32>::cast_const));
        // What is stored as it is, in whole registers, needs no memory between.
        if E::DTYPE == DType::F32 && registers * K::LANES == len {
            let to = square(|row, column| match pixel(row, column) {
                // SAFETY: within `out`, as the caller promises.
                Some(pixel) => unsafe { out.add(pixel + first).cast() },
                None => spare.as_mut_ptr(),
            });
            // SAFETY: the kernel's set is available, as above. A row of the results has whole registers,
            // a pixel this task's columns, and `spare` as many numbers.
            unsafe { K::transform::<f32, W::Output>(&from, &to, registers) };
            let Some(finish) = finish else { return };
            for (_, _, pixel) in inside {
                // SAFETY: this task's columns of one of its pixels, just written as `f32`.
                let sums = unsafe { slice::from_raw_parts_mut(out.add(pixel + first).cast(), len) };
                finish.apply(pixel, self.columns.clone(), sums);
            }
            return;
        }
        let row_len = registers * K::LANES;
        let spare = &mut spare[..W::OUT * W::OUT * row_len];
        let start = |row: usize, column: usize| (row * W::OUT + column) * row_len;
        let memory = spare.as_mut_ptr();
        let to = square(|row, column| match row < W::OUT && column < W::OUT {
            // SAFETY: a row of the length just taken.
            true => unsafe { memory.add(start(row, column)) },
            false => memory,
        });
        // SAFETY: as above; every place written to has whole registers of its own.
        unsafe { K::transform::<f32, W::Output>(&from, &to, registers) };
        for (row, column, pixel) in inside {
            let sums = &mut spare[start(row, column)..][..len];
            if let Some(finish) = finish {
                finish.apply(pixel, self.columns.clone(), sums);
            }
            // SAFETY: this task's columns of one of its pixels, as the caller promises.
            narrow(sums, unsafe {
                slice::from_raw_parts_mut(out.add(pixel + first), len)
            });
        }
    }
}
