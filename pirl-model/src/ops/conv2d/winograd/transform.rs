//! The transforms of Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308), on registers.
//!
//! They are those of Toom and Cook: a tile of the input, the taps and a tile of the output are
//! polynomials, and the product is taken at points. F(2x2, 3x3) uses 0, 1, -1 and infinity. F(4x4,
//! 3x3) uses 0, 3/4, -3/4, 3/2, -3/2 and infinity: all coefficients of the input and of the output are
//! exact in `f32`, and the error is half of that with the usual 1, -1, 2, -2
//! (`benches/RESULTS.md`).

use super::super::simd::Register;
use crate::ops::Element;

/// Numbers of a line; shorter lines leave the rest as it is.
pub(in super::super) type Line<R> = [R; SIDE];
/// Something for each place of a square of lines.
pub(in super::super) type Square<P> = [[P; SIDE]; SIDE];
/// The longest line.
const SIDE: usize = 6;

/// A linear map of lines.
pub(in super::super) trait Transform {
    /// Numbers that it reads.
    const FROM: usize;
    /// Numbers that it makes.
    const TO: usize;

    /// # Safety
    /// As for [`Register`].
    unsafe fn line<R: Register>(from: Line<R>) -> Line<R>;
}

/// Tiles of one size.
pub(in super::super) trait Tiles {
    /// Side of the output's tiles.
    const OUT: usize;
    /// Side of the input's, which overlap by 2.
    const IN: usize = Self::OUT + 2;
    /// Products of a tile, for each pair of channels.
    const PRODUCTS: usize = Self::IN * Self::IN;
    /// Of a tile of the input.
    type Input: Transform;
    /// Of the three taps.
    type Weight: Transform;
    /// Of the products, to a tile of the output.
    type Output: Transform;
    /// Of a tile of the output's gradient.
    type Gradient: Transform;
    /// Of the products with that, to the gradient of the three taps.
    type WeightGradient: Transform;
}

/// Applies `T` along both axes, see [`Kernel::transform`](super::super::kernel::Kernel::transform).
///
/// # Safety
/// As described there.
#[inline(always)]
pub(in super::super) unsafe fn transform_squares<R: Register, E: Element, T: Transform>(
    from: &Square<*const E>,
    to: &Square<*mut f32>,
    registers: usize,
) {
    for at in (0..registers).map(|register| register * R::LANES) {
        // SAFETY: the caller promises so many numbers at these places.
        unsafe {
            let mut half: Square<R> = [[R::zero(); SIDE]; SIDE];
            for column in 0..T::FROM {
                let mut line = [R::zero(); SIDE];
                for row in 0..T::FROM {
                    line[row] = R::widen(from[row][column].add(at));
                }
                let line = T::line(line);
                for row in 0..T::TO {
                    half[row][column] = line[row];
                }
            }
            for row in 0..T::TO {
                let line = T::line(half[row]);
                for column in 0..T::TO {
                    line[column].store(to[row][column].add(at));
                }
            }
        }
    }
}

/// Implements [`Transform`] by an expression.
macro_rules! transform {
    ($name:ident: $from:literal => $to:literal, |$line:ident, $register:ident| $body:block) => {
        pub(in super::super) struct $name;

        impl Transform for $name {
            const FROM: usize = $from;
            const TO: usize = $to;

            #[inline(always)]
            unsafe fn line<$register: Register>($line: Line<$register>) -> Line<$register> {
                // SAFETY: the caller has the instruction set.
                unsafe { $body }
            }
        }
    };
}

/// F(2x2, 3x3), and F(3x3, 2x2) for the weight's gradient.
pub(in super::super) struct Two;

impl Tiles for Two {
    const OUT: usize = 2;
    type Input = Input2;
    type Weight = Weight2;
    type Output = Output2;
    type Gradient = Gradient2;
    type WeightGradient = WeightGradient2;
}

transform!(Input2: 4 => 4, |d, R| {
    let [d0, d1, d2, d3, ..] = d;
    let zero = R::zero();
    [d0.minus(d2), d2.plus(d1), d2.minus(d1), d3.minus(d1), zero, zero]
});

transform!(Weight2: 3 => 4, |g, R| {
    let [g0, g1, g2, ..] = g;
    let (zero, half) = (R::zero(), R::splat(0.5));
    let (even, odd) = (g0.plus(g2), g1);
    let plus = zero.plus_product(half, even.plus(odd));
    let minus = zero.plus_product(half, even.minus(odd));
    [g0, plus, minus, g2, zero, zero]
});

transform!(Output2: 4 => 2, |m, R| {
    let [m0, m1, m2, m3, ..] = m;
    let zero = R::zero();
    [m0.plus(m1.plus(m2)), m1.minus(m2).plus(m3), zero, zero, zero, zero]
});

transform!(Gradient2: 2 => 4, |dy, R| {
    let [dy0, dy1, ..] = dy;
    let (zero, half) = (R::zero(), R::splat(0.5));
    let plus = zero.plus_product(half, dy0.plus(dy1));
    let minus = zero.plus_product(half, dy0.minus(dy1));
    [dy0, plus, minus, dy1, zero, zero]
});

transform!(WeightGradient2: 4 => 3, |m, R| {
    let [m0, m1, m2, m3, ..] = m;
    let (sum, zero) = (m1.plus(m2), R::zero());
    [m0.plus(sum), m1.minus(m2), sum.plus(m3), zero, zero, zero]
});

/// F(4x4, 3x3), and F(3x3, 4x4) for the weight's gradient.
pub(in super::super) struct Four;

impl Tiles for Four {
    const OUT: usize = 4;
    type Input = Input4;
    type Weight = Weight4;
    type Output = Output4;
    type Gradient = Gradient4;
    type WeightGradient = WeightGradient4;
}

/// The points beside 0 and infinity are these two and their negatives.
const POINTS: [f32; 2] = [0.75, 1.5];
/// Their squares.
const SQUARES: [f32; 2] = [POINTS[0] * POINTS[0], POINTS[1] * POINTS[1]];
/// What divides the values of a polynomial at 0 and at each of the points: the product of the
/// distances to all others.
const DIVISORS: [f32; 3] = [
    SQUARES[0] * SQUARES[1],
    2.0 * SQUARES[0] * (SQUARES[0] - SQUARES[1]),
    2.0 * SQUARES[1] * (SQUARES[1] - SQUARES[0]),
];

/// `by_a * a + by_b * b`.
///
/// # Safety
/// As for [`Register`].
#[inline(always)]
unsafe fn weighted<R: Register>(by_a: f32, a: R, by_b: f32, b: R) -> R {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        let first = R::zero().plus_product(R::splat(by_a), a);
        first.plus_product(R::splat(by_b), b)
    }
}

transform!(Input4: 6 => 6, |d, R| {
    let [d0, d1, d2, d3, d4, d5] = d;
    let [a, b] = POINTS;
    let [a2, b2] = SQUARES;
    let product = R::splat(a2 * b2);
    let sum = R::splat(-(a2 + b2));
    let even_a = d4.plus_product(R::splat(-b2), d2);
    let even_b = d4.plus_product(R::splat(-a2), d2);
    let odd_a = weighted(a, d3, -a * b2, d1);
    let odd_b = weighted(b, d3, -b * a2, d1);
    [
        d4.plus_product(sum, d2).plus_product(product, d0),
        even_a.plus(odd_a),
        even_a.minus(odd_a),
        even_b.plus(odd_b),
        even_b.minus(odd_b),
        d5.plus_product(sum, d3).plus_product(product, d1),
    ]
});

transform!(Weight4: 3 => 6, |g, R| {
    let [g0, g1, g2, ..] = g;
    let [a, b] = POINTS;
    let [a2, b2] = SQUARES;
    let [of_0, of_a, of_b] = DIVISORS;
    let even_a = weighted(1.0 / of_a, g0, a2 / of_a, g2);
    let even_b = weighted(1.0 / of_b, g0, b2 / of_b, g2);
    let zero = R::zero();
    let odd_a = zero.plus_product(R::splat(a / of_a), g1);
    let odd_b = zero.plus_product(R::splat(b / of_b), g1);
    [
        zero.plus_product(R::splat(1.0 / of_0), g0),
        even_a.plus(odd_a),
        even_a.minus(odd_a),
        even_b.plus(odd_b),
        even_b.minus(odd_b),
        g2,
    ]
});

transform!(Output4: 6 => 4, |m, R| {
    let [m0, m1, m2, m3, m4, m5] = m;
    let [a, b] = POINTS;
    let [a2, b2] = SQUARES;
    let (sum_a, difference_a) = (m1.plus(m2), m1.minus(m2));
    let (sum_b, difference_b) = (m3.plus(m4), m3.minus(m4));
    let zero = R::zero();
    [
        m0.plus(sum_a.plus(sum_b)),
        weighted(a, difference_a, b, difference_b),
        weighted(a2, sum_a, b2, sum_b),
        weighted(a * a2, difference_a, b * b2, difference_b).plus(m5),
        zero,
        zero,
    ]
});

transform!(Gradient4: 4 => 6, |dy, R| {
    let [dy0, dy1, dy2, dy3, ..] = dy;
    let [a, b] = POINTS;
    let [a2, b2] = SQUARES;
    let [of_0, of_a, of_b] = DIVISORS;
    let even_a = weighted(1.0 / of_a, dy0, a2 / of_a, dy2);
    let even_b = weighted(1.0 / of_b, dy0, b2 / of_b, dy2);
    let odd_a = weighted(a / of_a, dy1, a * a2 / of_a, dy3);
    let odd_b = weighted(b / of_b, dy1, b * b2 / of_b, dy3);
    [
        R::zero().plus_product(R::splat(1.0 / of_0), dy0),
        even_a.plus(odd_a),
        even_a.minus(odd_a),
        even_b.plus(odd_b),
        even_b.minus(odd_b),
        dy3,
    ]
});

transform!(WeightGradient4: 6 => 3, |m, R| {
    let [m0, m1, m2, m3, m4, m5] = m;
    let [a, b] = POINTS;
    let [a2, b2] = SQUARES;
    let (sum_a, difference_a) = (m1.plus(m2), m1.minus(m2));
    let (sum_b, difference_b) = (m3.plus(m4), m3.minus(m4));
    let zero = R::zero();
    [
        m0.plus(sum_a.plus(sum_b)),
        weighted(a, difference_a, b, difference_b),
        weighted(a2, sum_a, b2, sum_b).plus(m5),
        zero,
        zero,
        zero,
    ]
});
