//! The micro-kernels: tiles of a matrix product held in registers, and the transforms of Winograd's.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__m256, __m512};

use pirl_core::prefetch;

use super::lane::{self, Lane};
use super::plan::{Row, Segment};
#[cfg(target_arch = "x86_64")]
use super::simd::DotBf16;
#[cfg(test)]
use super::simd::PlainPairs;
use super::simd::{PlainRegister, Product, Register};
use super::winograd::transform::{Square, Transform, transform_squares};
use crate::ops::Element;

/// The most destination channels a panel has, over all instruction sets.
pub(super) const MAX_PANEL: usize = 32;

/// Distances between the factors of [`Kernel::outer`], in lanes.
pub(super) struct Strides {
    /// From a tile of `x` to the next.
    pub(super) tile: usize,
    /// From the lanes of one `k` in `x` to those of the next.
    pub(super) x: usize,
    /// The same in `dy`.
    pub(super) dy: usize,
}

/// Lanes of a segment below which the rows of the next tile are asked for: so little work takes as long
/// as it takes to read them.
const SHORT: usize = 128;

/// The kernels of one instruction set, and the layouts they read.
pub(super) trait Kernel {
    /// What they multiply.
    type Lane: Lane;
    /// Numbers in a register.
    const LANES: usize;
    /// Destination channels that a panel holds.
    const WIDTH: usize;
    /// Rows of the weight gradient that one tile of [`Kernel::outer`] computes, and that
    /// [`Kernel::pack_rows`] puts side by side.
    const ROWS: usize;

    /// For each row: `out[destination..][..columns] = sum over segments of x * panel`, or with `add`
    /// added to what is there.
    ///
    /// # Safety
    /// The processor has the instruction set. `x` is readable at every row's source plus every
    /// segment; `panel` has `WIDTH` readable lanes in each row that a segment names; `out` is
    /// readable and writable for `columns <= WIDTH` numbers at each row's destination, and nobody
    /// else accesses them.
    unsafe fn gather(
        rows: &[Row],
        segments: &[Segment],
        x: *const Self::Lane,
        panel: *const Self::Lane,
        out: *mut f32,
        columns: usize,
        add: bool,
    );

    /// `dw[m] += sum over k of x[k, m] * dy[k]`, for `m` in `0..len`.
    ///
    /// `x` and `dy` are as `strides` says: of each of `depth` `k`, `dy` has `WIDTH` lanes and `x` has
    /// `ROWS`, in tiles of as many `m`; `dw` has `WIDTH` numbers for each `m`.
    ///
    /// # Safety
    /// The processor has the instruction set. `x`, whole tiles of it, and `dy` are readable as
    /// described; `dw` is readable and writable by the caller alone.
    unsafe fn outer(
        depth: usize,
        strides: &Strides,
        x: *const Self::Lane,
        len: usize,
        dy: *const Self::Lane,
        dw: *mut f32,
    );

    /// Transforms squares of numbers along both axes: from the numbers at `from[row][column]`, widened, to
    /// those at `to[row][column]`, and so on for `registers` of neighbours.
    ///
    /// # Safety
    /// The processor has the instruction set. The first `T::FROM` rows and columns of `from` are
    /// readable for `registers * LANES` numbers, the first `T::TO` of `to` writable for as many, by
    /// the caller alone, and not among what is read.
    unsafe fn transform<E: Element, T: Transform>(
        from: &Square<*const E>,
        to: &Square<*mut f32>,
        registers: usize,
    );

    /// [`lane::pack_tiles`] of `ROWS`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn pack_rows<T: Element>(rows: &[Row], x: &[T], len: usize, packed: &mut [Self::Lane]);

    /// [`lane::pack_panels`] of `WIDTH`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn pack_columns<T: Element>(
        rows: &[Row],
        dy: &[T],
        c_out: usize,
        packed: &mut [Self::Lane],
    );
}

/// Defines a [`Kernel`] by how it multiplies and by its tiles, `rows` by `vectors` registers.
macro_rules! kernel {
    ($name:ident, $product:ty, $rows:literal, $vectors:literal $(, $features:literal)?) => {
        pub(super) struct $name;

        impl Kernel for $name {
            type Lane = <$product as Product>::Lane;
            const LANES: usize = <<$product as Product>::Sums as Register>::LANES;
            const WIDTH: usize = Self::LANES * $vectors;
            const ROWS: usize = $rows;

            $(#[target_feature(enable = $features)])?
            unsafe fn gather(
                rows: &[Row],
                segments: &[Segment],
                x: *const Self::Lane,
                panel: *const Self::Lane,
                out: *mut f32,
                columns: usize,
                add: bool,
            ) {
                // SAFETY: the caller's promises are passed on.
                unsafe {
                    gather_tiles::<$product, $rows, $vectors>(
                        rows, segments, x, panel, out, columns, add,
                    )
                }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn outer(
                depth: usize,
                strides: &Strides,
                x: *const Self::Lane,
                len: usize,
                dy: *const Self::Lane,
                dw: *mut f32,
            ) {
                // SAFETY: the caller's promises are passed on.
                unsafe { outer_tiles::<$product, $rows, $vectors>(depth, strides, x, len, dy, dw) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn transform<E: Element, T: Transform>(
                from: &Square<*const E>,
                to: &Square<*mut f32>,
                registers: usize,
            ) {
                // SAFETY: the caller's promises are passed on.
                unsafe {
                    transform_squares::<<$product as Product>::Sums, E, T>(from, to, registers)
                }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn pack_rows<T: Element>(
                rows: &[Row],
                x: &[T],
                len: usize,
                packed: &mut [Self::Lane],
            ) {
                lane::pack_tiles::<Self::Lane, T, $rows>(rows, x, len, packed);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn pack_columns<T: Element>(
                rows: &[Row],
                dy: &[T],
                c_out: usize,
                packed: &mut [Self::Lane],
            ) {
                lane::pack_panels::<Self::Lane, T, { $name::WIDTH }>(rows, dy, c_out, packed);
            }
        }
    };
}

#[cfg(test)]
kernel!(Pairs, PlainPairs, 4, 1);
kernel!(Portable, PlainRegister, 4, 1);
#[cfg(target_arch = "x86_64")]
kernel!(Avx2, __m256, 6, 2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
kernel!(Avx512, __m512, 10, 2, "avx512f");
#[cfg(target_arch = "x86_64")]
kernel!(Avx512Bf16, DotBf16, 10, 2, "avx512f,avx512bf16");

/// `$tile` with the fewest rows, of four, six, eight and `ROWS`, that have room for `$rows`, at least one. Less
/// than four take as long as four, since a sum waits for its last product.
macro_rules! short_tile {
    ($rows:expr, $tile:ident::<$product:ident>($($arg:expr),* $(,)?)) => {
        match $rows {
            1..=4 if ROWS > 4 => $tile::<$product, 4, VECTORS>($($arg),*),
            5..=6 if ROWS > 6 => $tile::<$product, 6, VECTORS>($($arg),*),
            7..=8 if ROWS > 8 => $tile::<$product, 8, VECTORS>($($arg),*),
            _ => $tile::<$product, ROWS, VECTORS>($($arg),*),
        }
    };
}

/// [`Kernel::gather`] with tiles of `ROWS` rows by `VECTORS` registers of channels, and of fewer rows at the
/// end.
#[inline(always)]
unsafe fn gather_tiles<P: Product, const ROWS: usize, const VECTORS: usize>(
    rows: &[Row],
    segments: &[Segment],
    x: *const P::Lane,
    panel: *const P::Lane,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    let (tiles, rest) = rows.as_chunks::<ROWS>();
    for (index, tile) in tiles.iter().enumerate() {
        let next = rows[(index + 1) * ROWS..].get(..ROWS).unwrap_or(rest);
        // SAFETY: the caller's promises are passed on.
        unsafe {
            gather_tile::<P, ROWS, VECTORS>(tile, next, segments, x, panel, out, columns, add);
        }
    }
    if !rest.is_empty() {
        // SAFETY: as above.
        unsafe {
            short_tile!(
                rest.len(),
                gather_tile::<P>(rest, &[], segments, x, panel, out, columns, add)
            );
        }
    }
}

/// The sums of one tile, of at most `ROWS` rows, at least one; `next` are those that are wanted after it.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "those of `gather`")]
unsafe fn gather_tile<P: Product, const ROWS: usize, const VECTORS: usize>(
    tile: &[Row],
    next: &[Row],
    segments: &[Segment],
    x: *const P::Lane,
    panel: *const P::Lane,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    let lanes = P::Sums::LANES;
    let width = lanes * VECTORS;
    // A short tile repeats its last row, which is then computed several times.
    let row = |j: usize| tile[j.min(tile.len() - 1)];
    // SAFETY: offsets stay within what the caller promises: a source plus a segment in `x`, a
    // segment's rows in `panel`, `columns` numbers at a destination in `out`. A narrow panel
    // is stored to `spill` first, which holds the widest panel there is.
    unsafe {
        let mut sums = [[P::Sums::zero(); VECTORS]; ROWS];
        for segment in segments {
            let mut from = [x; ROWS];
            for (j, from) in from.iter_mut().enumerate() {
                *from = x.add(row(j).source + segment.source);
            }
            let mut weight = panel.add(segment.weight * width);
            if segment.len <= SHORT {
                for row in next {
                    let from = x.add(row.source + segment.source);
                    prefetch(core::slice::from_raw_parts(from, segment.len));
                }
            }
            for i in 0..segment.len {
                let mut weights = [P::splat(P::Lane::ZERO); VECTORS];
                for (v, w) in weights.iter_mut().enumerate() {
                    *w = P::load(weight.add(v * lanes));
                }
                for (sums, from) in sums.iter_mut().zip(&from) {
                    let value = P::splat(*from.add(i));
                    for (sum, &w) in sums.iter_mut().zip(&weights) {
                        *sum = P::add(*sum, value, w);
                    }
                }
                weight = weight.add(width);
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            // Not a loop over `tile`: its length is not known, and `sums` must stay registers.
            if j >= tile.len() {
                break;
            }
            let to = out.add(tile[j].destination);
            if columns == width {
                for (v, &sum) in sums.iter().enumerate() {
                    let to = to.add(v * lanes);
                    let sum = if add {
                        sum.plus(P::Sums::load(to))
                    } else {
                        sum
                    };
                    sum.store(to);
                }
            } else {
                let mut spill = [0f32; MAX_PANEL];
                for (v, sum) in sums.iter().enumerate() {
                    sum.store(spill.as_mut_ptr().add(v * lanes));
                }
                for (c, sum) in spill[..columns].iter().enumerate() {
                    *to.add(c) = if add { *to.add(c) + sum } else { *sum };
                }
            }
        }
    }
}

/// [`Kernel::outer`] with tiles of `ROWS` rows of `dw` by `VECTORS` registers of channels, and of fewer rows at
/// the end, as [`gather_tiles`].
#[inline(always)]
unsafe fn outer_tiles<P: Product, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    strides: &Strides,
    x: *const P::Lane,
    len: usize,
    dy: *const P::Lane,
    dw: *mut f32,
) {
    let width = P::Sums::LANES * VECTORS;
    for (tile, first) in (0..len).step_by(ROWS).enumerate() {
        let rows = ROWS.min(len - first);
        // SAFETY: the caller promises whole tiles of `x`, `depth` rows of `dy` at these strides, and as many
        // rows of `dw`.
        unsafe {
            let (x, dw) = (x.add(tile * strides.tile), dw.add(first * width));
            short_tile!(rows, outer_tile::<P>(depth, strides, x, rows, dy, dw));
        }
    }
}

/// Adds the products of one tile, of at most `ROWS` rows, to `rows` of `dw`.
#[inline(always)]
unsafe fn outer_tile<P: Product, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    strides: &Strides,
    x: *const P::Lane,
    rows: usize,
    dy: *const P::Lane,
    dw: *mut f32,
) {
    let lanes = P::Sums::LANES;
    // SAFETY: the caller promises a tile of `x` and `depth` rows of `dy` at these strides; only the first `rows`
    // of `dw` are accessed.
    unsafe {
        let mut sums = [[P::Sums::zero(); VECTORS]; ROWS];
        let (mut from, mut from_dy) = (x, dy);
        for _ in 0..depth {
            let mut gradients = [P::splat(P::Lane::ZERO); VECTORS];
            for (v, g) in gradients.iter_mut().enumerate() {
                *g = P::load(from_dy.add(v * lanes));
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                let value = P::splat(*from.add(j));
                for (sum, &g) in sums.iter_mut().zip(&gradients) {
                    *sum = P::add(*sum, value, g);
                }
            }
            from = from.wrapping_add(strides.x);
            from_dy = from_dy.wrapping_add(strides.dy);
        }
        add_to(&sums, rows, dw);
    }
}

/// Adds the first `rows` rows of registers to rows of memory, one after another.
///
/// # Safety
/// The rows are readable and writable.
#[inline(always)]
unsafe fn add_to<R: Register, const ROWS: usize, const VECTORS: usize>(
    sums: &[[R; VECTORS]; ROWS],
    rows: usize,
    to: *mut f32,
) {
    for (j, sums) in sums.iter().enumerate() {
        if j >= rows {
            break;
        }
        for (v, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises the row.
            unsafe {
                let to = to.add((j * VECTORS + v) * R::LANES);
                sum.plus(R::load(to)).store(to);
            }
        }
    }
}
