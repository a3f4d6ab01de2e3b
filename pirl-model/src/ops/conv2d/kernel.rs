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

/// For each row: `out[destination..][..columns] = sum over segments of x * panel`.
///
/// # Safety
/// The processor has `isa`. `x` is readable at every row's source plus every segment; `panel` has
/// [`panel_width`] readable numbers in each row that a segment names; `out` is writable for
/// `columns <= panel_width` numbers at each row's destination, and nobody else accesses them.
#[inline]
pub(super) unsafe fn gather(
    isa: Isa,
    rows: &[Row],
    segments: &[Segment],
    x: *const f32,
    panel: *const f32,
    out: *mut f32,
    columns: usize,
) {
    // SAFETY: the caller's promises are passed on; each variant runs only where its set exists.
    unsafe {
        match isa {
            Isa::Portable => gather_tiles::<Lanes, 4, 1>(rows, segments, x, panel, out, columns),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => gather_avx2(rows, segments, x, panel, out, columns),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => gather_avx512(rows, segments, x, panel, out, columns),
        }
    }
}

/// `dw[m] += sum over rows of x[source + m] * dy`, for `m` in `0..len`.
///
/// `dy` holds [`panel_width`] numbers for each source, one after another; `dw` has `pitch` numbers
/// from one `m` to the next.
///
/// # Safety
/// The processor has `isa`. `x` is readable for `len` numbers at every source, `dy` as described;
/// `dw` is readable and writable for [`panel_width`] numbers at each `m`, by the caller alone.
#[inline]
pub(super) unsafe fn outer(
    isa: Isa,
    sources: &[usize],
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
    pitch: usize,
) {
    // SAFETY: the caller's promises are passed on; each variant runs only where its set exists.
    unsafe {
        match isa {
            Isa::Portable => outer_tiles::<Lanes, 4, 1>(sources, x, len, dy, dw, pitch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => outer_avx2(sources, x, len, dy, dw, pitch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => outer_avx512(sources, x, len, dy, dw, pitch),
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
) {
    use core::arch::x86_64::__m256;
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_tiles::<__m256, 6, 2>(rows, segments, x, panel, out, columns) }
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
) {
    use core::arch::x86_64::__m512;
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_tiles::<__m512, 10, 2>(rows, segments, x, panel, out, columns) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn outer_avx2(
    sources: &[usize],
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
    pitch: usize,
) {
    use core::arch::x86_64::__m256;
    // SAFETY: the caller's promises are passed on.
    unsafe { outer_tiles::<__m256, 6, 2>(sources, x, len, dy, dw, pitch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn outer_avx512(
    sources: &[usize],
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
    pitch: usize,
) {
    use core::arch::x86_64::__m512;
    // SAFETY: the caller's promises are passed on.
    unsafe { outer_tiles::<__m512, 10, 2>(sources, x, len, dy, dw, pitch) }
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
) {
    let width = V::LANES * VECTORS;
    for tile in rows.chunks(ROWS) {
        // A short tile repeats its last row, which is then computed and written several times.
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
                let to = out.add(row(j).destination);
                if columns == width {
                    for (v, sum) in sums.iter().enumerate() {
                        sum.store(to.add(v * V::LANES));
                    }
                } else {
                    let mut spill = [0f32; MAX_PANEL];
                    for (v, sum) in sums.iter().enumerate() {
                        sum.store(spill.as_mut_ptr().add(v * V::LANES));
                    }
                    to.copy_from_nonoverlapping(spill.as_ptr(), columns);
                }
            }
        }
    }
}

/// [`outer`] with tiles of `ROWS` rows of `dw` by `VECTORS` registers of channels.
#[inline(always)]
unsafe fn outer_tiles<V: Vector, const ROWS: usize, const VECTORS: usize>(
    sources: &[usize],
    x: *const f32,
    len: usize,
    dy: *const f32,
    dw: *mut f32,
    pitch: usize,
) {
    let full = len - len % ROWS;
    // SAFETY: `m + j < len` in the first loop; in the tail, `ROWS` indices clamped to `len - 1` are
    // read and the first `len - full` written, so everything lies within the caller's promise.
    unsafe {
        for m in (0..full).step_by(ROWS) {
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let mut from_dy = dy;
            for &source in sources {
                let from = x.add(source + m);
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
                from_dy = from_dy.add(V::LANES * VECTORS);
            }
            add_to(&sums, dw.add(m * pitch), pitch);
        }
        if full < len {
            let rest = len - full;
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let mut from_dy = dy;
            let mut offsets = [0; ROWS];
            for (j, offset) in offsets.iter_mut().enumerate() {
                *offset = full + j.min(rest - 1);
            }
            for &source in sources {
                let from = x.add(source);
                let mut gradients = [V::zero(); VECTORS];
                for (v, g) in gradients.iter_mut().enumerate() {
                    *g = V::load(from_dy.add(v * V::LANES));
                }
                for (sums, &offset) in sums.iter_mut().zip(&offsets) {
                    let value = V::splat(*from.add(offset));
                    for (sum, &g) in sums.iter_mut().zip(&gradients) {
                        *sum = sum.add_product(value, g);
                    }
                }
                from_dy = from_dy.add(V::LANES * VECTORS);
            }
            add_to(&sums[..rest], dw.add(full * pitch), pitch);
        }
    }
}

/// Adds rows of registers to rows of memory `pitch` numbers apart.
///
/// # Safety
/// The rows are readable and writable.
#[inline(always)]
unsafe fn add_to<V: Vector, const VECTORS: usize>(
    sums: &[[V; VECTORS]],
    to: *mut f32,
    pitch: usize,
) {
    for (j, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises the row.
            unsafe {
                let to = to.add(j * pitch + v * V::LANES);
                V::load(to).add_product(sum, V::splat(1.0)).store(to);
            }
        }
    }
}
