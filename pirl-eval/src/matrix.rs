//! The two matrix products of the probes, on row-major slices and one thread: the callers cut
//! their work over threads themselves, always the same way, so that results do not depend on how
//! many there are.

use gemm::{Parallelism, gemm};

/// `out = a b^T`. `a`: `(rows, inner)`, `b`: `(columns, inner)`, `out`: `(rows, columns)`.
pub(crate) fn times_transposed(
    (rows, columns, inner): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
) {
    let (a, b) = ((a, inner, 1), (b, 1, inner));
    product((rows, columns, inner), a, b, out);
}

/// `out = a^T b`. `a`: `(inner, rows)`, `b`: `(inner, columns)`, `out`: `(rows, columns)`.
pub(crate) fn transposed_times(
    (rows, columns, inner): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
) {
    let (a, b) = ((a, 1, rows), (b, columns, 1));
    product((rows, columns, inner), a, b, out);
}

/// A slice with its row and column stride.
type Strided<'a> = (&'a [f32], usize, usize);

fn product(
    (rows, columns, inner): (usize, usize, usize),
    (a, a_row, a_column): Strided<'_>,
    (b, b_row, b_column): Strided<'_>,
    out: &mut [f32],
) {
    assert_eq!(a.len(), rows * inner, "left factor");
    assert_eq!(b.len(), inner * columns, "right factor");
    assert_eq!(out.len(), rows * columns, "product");
    // SAFETY: the lengths were just checked, so with these strides (each pair is that of a dense
    // row-major matrix or of its transpose) every element read or written lies in its slice; `out`
    // is borrowed uniquely, so it overlaps neither factor, and all three are initialised.
    unsafe {
        gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            false,
            a.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_the_triple_loop() {
        for (rows, columns, inner) in [(1, 1, 1), (3, 5, 7), (64, 33, 130), (2, 4, 0)] {
            let a = benches::fill(1, rows * inner);
            let b = benches::fill(2, columns * inner);
            let mut out = vec![f32::NAN; rows * columns];
            times_transposed((rows, columns, inner), &a, &b, &mut out);
            let transpose = |x: &[f32], n: usize| -> Vec<f32> {
                (0..n * inner).map(|i| x[(i % n) * inner + i / n]).collect()
            };
            let mut twin = vec![f32::NAN; rows * columns];
            let (a_t, b_t) = (transpose(&a, rows), transpose(&b, columns));
            transposed_times((rows, columns, inner), &a_t, &b_t, &mut twin);
            for (i, (x, y)) in out.iter().zip(&twin).enumerate() {
                let (r, c) = (i / columns, i % columns);
                let exact: f64 = (0..inner)
                    .map(|k| f64::from(a[r * inner + k]) * f64::from(b[c * inner + k]))
                    .sum();
                assert!((f64::from(*x) - exact).abs() < 1e-5, "{x} {exact}");
                assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} {exact}");
            }
        }
    }
}
