//! Products of matrices in the CPU's memory.

/// A matrix of `f32` in a slice, dense, by rows or by columns.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `(rows, columns)`, row by row.
    ///
    /// # Panics
    /// If `values` has another length.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * columns,
            "a matrix of {rows} x {columns}"
        );
        Self {
            values,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// Its transpose: the same numbers, read the other way.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = scale * a b`, row by row, on the calling thread: callers cut their work over threads
/// themselves, always the same way, so that results do not depend on how many there are.
///
/// # Panics
/// If the sizes do not fit together.
pub fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "rows of the right factor");
    assert_eq!(out.len(), m * n, "length of the product");
    // SAFETY: `gemm` reads m x k of `a` and k x n of `b` by their strides, which `Matrix` keeps within
    // their slices, and writes m x n of `out`, whose length was just checked, by (n, 1); `out` is
    // borrowed mutably, so it overlaps neither; with `read_dst` false its old content is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;
    use rand::RngExt;

    #[test]
    fn products_equal_the_triple_loop() {
        let sizes = [(1, 1, 1), (3, 5, 7), (64, 33, 130), (2, 4, 0), (1, 9, 17)];
        for (m, n, k) in sizes {
            let mut rng = stream(0, 0, m as u64, n as u64);
            let mut numbers = |len: usize| -> Vec<f32> {
                (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
            };
            let (a, b) = (numbers(m * k), numbers(k * n));
            let flip = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                let at = |i: usize| x[(i % rows) * columns + i / rows];
                (0..x.len()).map(at).collect()
            };
            let (at, bt) = (flip(&a, m, k), flip(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&at, k, m).t()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).t()];
            for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                let mut out = vec![f32::NAN; m * n];
                product(&mut out, left, right, 0.5);
                for (i, found) in out.iter().enumerate() {
                    let (row, column) = (i / n, i % n);
                    let terms =
                        (0..k).map(|j| f64::from(a[row * k + j]) * f64::from(b[j * n + column]));
                    let exact = 0.5 * terms.sum::<f64>();
                    assert!((f64::from(*found) - exact).abs() < 1e-5, "{found}, {exact}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows of the right factor")]
    fn factors_must_fit_together() {
        let (a, b) = ([0.0; 6], [0.0; 6]);
        product(
            &mut [0.0; 4],
            Matrix::new(&a, 2, 3),
            Matrix::new(&b, 2, 3),
            1.0,
        );
    }
}
