//! Shared negatives as the logits of every tile read them, packed once for all.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Packed;

/// There is none for other processors.
#[cfg(not(target_arch = "x86_64"))]
pub(super) enum Packed {}

#[cfg(not(target_arch = "x86_64"))]
impl Packed {
    pub(super) fn new(_: &[f32], _: usize) -> Option<Self> {
        None
    }

    pub(super) fn products(&self, _: &[f32], _: f32, _: &mut [f32]) {
        match *self {}
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_load_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mul_ps, _mm512_set1_ps,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use pirl_core::Instructions;
    use rayon::prelude::*;

    /// Rows side by side in a panel.
    const PANEL: usize = 16;
    /// Panels that AVX-512 multiplies at once.
    const PANELS: usize = 2;
    /// Queries whose sums with a panel are kept in registers.
    const QUERIES: usize = 6;

    /// One column of each row of a panel.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    struct Line([f32; PANEL]);

    /// Rows in panels, for processors with AVX2 and FMA.
    pub(in super::super) struct Packed {
        /// `dim` for each panel; the last is filled up with zeros.
        lines: Vec<Line>,
        dim: usize,
    }

    impl Packed {
        /// `rows`: each of `dim` numbers. `None` where [`Instructions`] are less than AVX2.
        pub(in super::super) fn new(rows: &[f32], dim: usize) -> Option<Self> {
            if dim == 0 || Instructions::in_use() < Instructions::Avx2 {
                return None;
            }
            let panels = (rows.len() / dim).div_ceil(PANEL);
            let mut lines = vec![Line([0.0; PANEL]); panels * dim];
            let panels = lines.par_chunks_mut(dim).zip(rows.par_chunks(PANEL * dim));
            panels.for_each(|(lines, rows)| {
                for (place, row) in rows.chunks_exact(dim).enumerate() {
                    for (line, x) in lines.iter_mut().zip(row) {
                        line.0[place] = *x;
                    }
                }
            });
            Some(Self { lines, dim })
        }

        /// `out = scale * queries rows^T`, a row of `out` for each query.
        pub(in super::super) fn products(&self, queries: &[f32], scale: f32, out: &mut [f32]) {
            let count = queries.len() / self.dim;
            let rows = out.len() / count.max(1);
            // The queries of a tile side by side, column by column, as a panel's rows.
            let mut tiles = vec![[0.0; QUERIES]; count.div_ceil(QUERIES) * self.dim];
            for (query, numbers) in queries.chunks_exact(self.dim).enumerate() {
                let tile = &mut tiles[query / QUERIES * self.dim..][..self.dim];
                for (columns, x) in tile.iter_mut().zip(numbers) {
                    columns[query % QUERIES] = *x;
                }
            }
            let at_once = match Instructions::in_use() {
                Instructions::Baseline | Instructions::Avx2 => 1,
                Instructions::Avx512 | Instructions::Avx512Bf16 => PANELS,
            };
            let mut sums = [[[0.0; PANEL]; QUERIES]; PANELS];
            for (part, lines) in self.lines.chunks(at_once * self.dim).enumerate() {
                let first = part * at_once * PANEL;
                for (tile, of_tile) in tiles
                    .chunks_exact(self.dim)
                    .zip(out.chunks_mut(QUERIES * rows))
                {
                    match lines.split_at_checked(self.dim) {
                        Some((one, two)) if two.len() == self.dim => {
                            // SAFETY: several panels are taken only where the feature is.
                            unsafe { multiply_panels([one, two], tile, scale, &mut sums) };
                        }
                        // SAFETY: the processor has the set that was in use when this was made.
                        _ => unsafe { multiply(lines, tile, scale, &mut sums[0]) },
                    }
                    let panels = lines.len() / self.dim;
                    for (panel, sums) in sums[..panels].iter().enumerate() {
                        let start = first + panel * PANEL;
                        let columns = start..rows.min(start + PANEL);
                        for (out, sums) in of_tile.chunks_exact_mut(rows).zip(sums) {
                            out[columns.clone()].copy_from_slice(&sums[..columns.len()]);
                        }
                    }
                }
            }
        }
    }

    /// [`multiply`] with several panels at once, so that there are as many sums as the processor's
    /// multipliers take.
    #[target_feature(enable = "avx512f")]
    fn multiply_panels(
        [one, two]: [&[Line]; PANELS],
        tile: &[[f32; QUERIES]],
        scale: f32,
        out: &mut [[[f32; PANEL]; QUERIES]; PANELS],
    ) {
        let mut sums = [[_mm512_setzero_ps(); QUERIES]; PANELS];
        for ((Line(one), Line(two)), queries) in one.iter().zip(two).zip(tile) {
            // SAFETY: a line has sixteen numbers and the alignment of a cache line.
            let rows = unsafe { [_mm512_load_ps(one.as_ptr()), _mm512_load_ps(two.as_ptr())] };
            for (i, query) in queries.iter().enumerate() {
                let query = _mm512_set1_ps(*query);
                for (sums, rows) in sums.iter_mut().zip(rows) {
                    sums[i] = _mm512_fmadd_ps(query, rows, sums[i]);
                }
            }
        }
        let scale = _mm512_set1_ps(scale);
        for (out, sum) in out.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(scale, *sum)) };
        }
    }

    /// `out = scale * ` the products of a tile's queries with a panel's rows, each summed column by column.
    #[target_feature(enable = "avx2,fma")]
    fn multiply(
        panel: &[Line],
        tile: &[[f32; QUERIES]],
        scale: f32,
        out: &mut [[f32; PANEL]; QUERIES],
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; QUERIES];
        for (Line(rows), queries) in panel.iter().zip(tile) {
            let (low, high) = (&rows[..8], &rows[8..]);
            // SAFETY: a line has twice eight numbers and the alignment of a cache line.
            let rows = unsafe { [_mm256_load_ps(low.as_ptr()), _mm256_load_ps(high.as_ptr())] };
            for (sums, query) in sums.iter_mut().zip(queries) {
                let query = _mm256_set1_ps(*query);
                for (sum, rows) in sums.iter_mut().zip(rows) {
                    *sum = _mm256_fmadd_ps(query, rows, *sum);
                }
            }
        }
        let scale = _mm256_set1_ps(scale);
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.chunks_exact_mut(8).zip(sums) {
                // SAFETY: a chunk has eight numbers.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(scale, sum)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_those_of_the_rows() {
        for (queries, rows, dim) in [(1, 1, 1), (6, 16, 8), (7, 33, 5), (48, 100, 128)] {
            let (x, y) = (
                benches::fill(1, queries * dim),
                benches::fill(2, rows * dim),
            );
            let Some(packed) = Packed::new(&y, dim) else {
                eprintln!("skipped: no AVX2");
                return;
            };
            let mut out = vec![f32::NAN; queries * rows];
            packed.products(&x, 0.5, &mut out);
            for (i, found) in out.iter().enumerate() {
                let (x, y) = (&x[i / rows * dim..][..dim], &y[i % rows * dim..][..dim]);
                let terms = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
                let exact = 0.5 * terms.sum::<f64>();
                assert!((f64::from(*found) - exact).abs() < 1e-5, "{found}, {exact}");
            }
        }
    }
}
