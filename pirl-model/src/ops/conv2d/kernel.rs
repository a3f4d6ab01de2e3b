//! The two micro-kernels: tiles of a matrix product held in registers.

use super::plan::{Row, Segment};
use super::simd::{Isa, Lanes, Vector};

/// The most destination channels a panel has, over all instruction sets.
const MAX_PANEL: usize = 32;

/// Destination channels that a panel of the packed weight holds.
pub(super) fn panel_width(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 8,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 16,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 32,
    }
}

/// For each row: `out[destination..][..columns] = sum over segments of x * panel`, or with `add`
/// added to what is there.
///
/// # Safety
/// The processor has `isa`. `x` is readable at every row's source plus every segment; `panel` has
/// [`panel_width`] readable numbers in each row that a segment names; `out` is readable and writable
/// for `columns <= panel_width` numbers at each row's destination, and nobody else accesses them.
#[expect(clippy::too_many_arguments, reason = "a kernel over plain memory")]
#[inline]
pub(super) unsafe fn gather(
    isa: Isa,
    rows: &[Row],
    segments: &[Segment],
    x: *const f32,
    panel: *const f32,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    // SAFETY: the caller's promises are passed on; each variant runs only where its set exists.
    unsafe {
        match isa {
            Isa::Portable => {
                gather_tiles::<Lanes, 4, 1>(rows, segments, x, panel, out, columns, add)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => gather_avx2(rows, segments, x, panel, out, columns, add),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => gather_avx512(rows, segments, x, panel, out, columns, add),
        }
    }
}

/// Rows of the weight gradient that one tile of [`outer`] computes, and that [`pack_rows`] puts side
/// by side.
pub(super) fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 4,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 6,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 10,
    }
}

/// Packs `len` numbers of `x` after the source of each row for [`outer`].
pub(super) fn pack_rows(isa: Isa, rows: &[Row], x: &[f32], len: usize, packed: &mut [f32]) {
    match isa {
        Isa::Portable => pack_tiles::<4>(rows, x, len, packed),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => pack_tiles::<6>(rows, x, len, packed),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => pack_tiles::<10>(rows, x, len, packed),
    }
}

fn pack_tiles<const ROWS: usize>(rows: &[Row], x: &[f32], len: usize, packed: &mut [f32]) {
    let depth = rows.len();
    for (k, row) in rows.iter().enumerate() {
        let (tiles, rest) = x[row.source..][..len].as_chunks::<ROWS>();
        let places = packed.chunks_exact_mut(depth * ROWS);
        for (place, tile) in places.zip(tiles) {
            place[k * ROWS..][..ROWS].copy_from_slice(tile);
        }
        if !rest.is_empty() {
            let last = &mut packed[(tiles.len() * depth + k) * ROWS..][..ROWS];
            last[..rest.len()].copy_from_slice(rest);
            last[rest.len()..].fill(0.0);
        }
    }
}

/// Packs the gradients of the pixels of `rows` for [`outer`]: a panel of channels after the other,
/// each with [`panel_width`] numbers a pixel, the last panel filled up with zeros.
pub(super) fn pack_columns(isa: Isa, rows: &[Row], dy: &[f32], c_out: usize, packed: &mut [f32]) {
    match panel_width(isa) {
        8 => pack_panels::<8>(rows, dy, c_out, packed),
        16 => pack_panels::<16>(rows, dy, c_out, packed),
        _ => pack_panels::<MAX_PANEL>(rows, dy, c_out, packed),
    }
}

fn pack_panels<const WIDTH: usize>(rows: &[Row], dy: &[f32], c_out: usize, packed: &mut [f32]) {
    let panels = packed.chunks_exact_mut(rows.len() * WIDTH);
    for (first, panel) in (0..c_out).step_by(WIDTH).zip(panels) {
        let (places, _) = panel.as_chunks_mut::<WIDTH>();
        for (place, row) in places.iter_mut().zip(rows) {
            let channels = &dy[row.destination..][..c_out];
            match channels[first..].first_chunk::<WIDTH>() {
                Some(whole) => *place = *whole,
                None => {
                    *place = [0.0; WIDTH];
                    place[..c_out - first].copy_from_slice(&channels[first..]);
                }
            }
        }
    }
}

/// `dw[m] += sum over k of x[k, m] * dy[k]`, for `m` in `0..len`.
///
/// `x` is packed: tiles of [`tile_rows`] rows, each with `depth` groups of that many numbers, the last
/// tile filled up. `dy` holds [`panel_width`] numbers for each `k`, `dw` for each `m`.
///
/// # Safety
/// The processor has `isa`. `x` and `dy` are readable as described; `dw` is readable and writable
/// for [`panel_width`] numbers at each `m`, by the caller alone.
#[inline]
pub(super) unsafe fn outer(
    isa: Isa,
    depth: usize,
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
) {
    // SAFETY: the caller's promises are passed on; each variant runs only where its set exists.
    unsafe {
        match isa {
            Isa::Portable => outer_tiles::<Lanes, 4, 1>(depth, x, len, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => outer_avx2(depth, x, len, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => outer_avx512(depth, x, len, dy, dw),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn gather_avx2(
    rows: &[Row],
    segments: &[Segment],
    x: *const f32,
    panel: *const f32,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    use core::arch::x86_64::__m256;
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_tiles::<__m256, 6, 2>(rows, segments, x, panel, out, columns, add) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn gather_avx512(
    rows: &[Row],
    segments: &[Segment],
    x: *const f32,
    panel: *const f32,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    use core::arch::x86_64::__m512;
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_tiles::<__m512, 10, 2>(rows, segments, x, panel, out, columns, add) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn outer_avx2(depth: usize, x: *const f32, len: usize, dy: *const f32, dw: *mut f32) {
    use core::arch::x86_64::__m256;
    // SAFETY: the caller's promises are passed on.
    unsafe { outer_tiles::<__m256, 6, 2>(depth, x, len, dy, dw) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn outer_avx512(depth: usize, x: *const f32, len: usize, dy: *const f32, dw: *mut f32) {
    use core::arch::x86_64::__m512;
    // SAFETY: the caller's promises are passed on.
    unsafe { outer_tiles::<__m512, 10, 2>(depth, x, len, dy, dw) }
}

/// [`gather`] with tiles of `ROWS` rows by `VECTORS` registers of channels.
#[inline(always)]
unsafe fn gather_tiles<V: Vector, const ROWS: usize, const VECTORS: usize>(
    rows: &[Row],
    segments: &[Segment],
    x: *const f32,
    panel: *const f32,
    out: *mut f32,
    columns: usize,
    add: bool,
) {
    let width = V::LANES * VECTORS;
    for tile in rows.chunks(ROWS) {
        // A short tile repeats its last row, which is then computed several times.
        let row = |j: usize| tile[j.min(tile.len() - 1)];
        // SAFETY: offsets stay within what the caller promises: a source plus a segment in `x`, a
        // segment's rows in `panel`, `columns` numbers at a destination in `out`. A narrow panel
        // is stored to `spill` first, which holds the widest panel there is.
        unsafe {
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            for segment in segments {
                let mut from = [x; ROWS];
                for (j, from) in from.iter_mut().enumerate() {
                    *from = x.add(row(j).source + segment.source);
                }
                let mut weight = panel.add(segment.weight * width);
                for i in 0..segment.len {
                    let mut weights = [V::zero(); VECTORS];
                    for (v, w) in weights.iter_mut().enumerate() {
                        *w = V::load(weight.add(v * V::LANES));
                    }
                    for (sums, from) in sums.iter_mut().zip(&from) {
                        let value = V::splat(*from.add(i));
                        for (sum, &w) in sums.iter_mut().zip(&weights) {
                            *sum = sum.add_product(value, w);
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
                        let to = to.add(v * V::LANES);
                        let sum = if add { sum.plus(V::load(to)) } else { sum };
                        sum.store(to);
                    }
                } else {
                    let mut spill = [0f32; MAX_PANEL];
                    for (v, sum) in sums.iter().enumerate() {
                        sum.store(spill.as_mut_ptr().add(v * V::LANES));
                    }
                    for (c, sum) in spill[..columns].iter().enumerate() {
                        *to.add(c) = if add { *to.add(c) + sum } else { *sum };
                    }
                }
            }
        }
    }
}

/// [`outer`] with tiles of `ROWS` rows of `dw` by `VECTORS` registers of channels.
#[inline(always)]
unsafe fn outer_tiles<V: Vector, const ROWS: usize, const VECTORS: usize>(
    depth: usize,
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
) {
    // SAFETY: tile `t` begins at `t * ROWS * depth` of `x` and has `ROWS` numbers for each of `depth`
    // rows of `dy`; only rows below `len` of `dw` are accessed.
    unsafe {
        for first in (0..len).step_by(ROWS) {
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let mut from = x.add(first * depth);
            let mut from_dy = dy;
            for _ in 0..depth {
                let mut gradients = [V::zero(); VECTORS];
                for (v, g) in gradients.iter_mut().enumerate() {
                    *g = V::load(from_dy.add(v * V::LANES));
                }
                for (j, sums) in sums.iter_mut().enumerate() {
                    let value = V::splat(*from.add(j));
                    for (sum, &g) in sums.iter_mut().zip(&gradients) {
                        *sum = sum.add_product(value, g);
                    }
                }
                from = from.add(ROWS);
                from_dy = from_dy.add(V::LANES * VECTORS);
            }
            add_to(
                &sums,
                ROWS.min(len - first),
                dw.add(first * V::LANES * VECTORS),
            );
        }
    }
}

/// Adds the first `rows` rows of registers to rows of memory, one after another.
///
/// # Safety
/// The rows are readable and writable.
#[inline(always)]
unsafe fn add_to<V: Vector, const ROWS: usize, const VECTORS: usize>(
    sums: &[[V; VECTORS]; ROWS],
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
                let to = to.add((j * VECTORS + v) * V::LANES);
                sum.plus(V::load(to)).store(to);
            }
        }
    }
}
