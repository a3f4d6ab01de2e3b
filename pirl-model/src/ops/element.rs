//! The types that activations are stored in: `f32`, or `bf16` at half the memory.
//!
//! Whatever the type, ops compute in `f32` and round what they store.

use half::bf16;

use super::vectorised::vectorised;

/// Numbers that any pattern of bits, and so memory of unspecified contents, is a value of.
///
/// # Safety
/// Every pattern of bits must be a value, and the alignment at most that of a cache line, 64.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: 16 plain bits.
unsafe impl Plain for bf16 {}

/// The type of a stored activation, or of its gradient; sealed.
pub trait Element: Plain + PartialEq + std::fmt::Debug {
    /// Whether this is [`bf16`], else it is `f32`.
    const BF16: bool;

    /// The number as `f32`, exactly.
    fn to_f32(self) -> f32;

    /// The nearest number of this type, of two equally near ones the even; a NaN stays one.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const BF16: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    const BF16: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Without the branches of `half`'s, which keep a loop from being vectorised.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        let quiet = bits | 0x40_0000;
        Self::from_bits(((if x.is_nan() { quiet } else { nearest }) >> 16) as u16)
    }
}

vectorised! {
    /// `to = from`, exactly.
    pub(super) fn widen<T: Element>(from: &[T], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
    }
}

vectorised! {
    /// `to = from`, rounded.
    pub(super) fn narrow<T: Element>(from: &[f32], to: &mut [T]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = T::from_f32(from);
        }
    }
}

vectorised! {
    /// `sum += x`, rounded.
    pub(crate) fn add<T: Element>(x: &[T], sum: &mut [T]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = T::from_f32(sum.to_f32() + x.to_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_equals_that_of_half() {
        let special = [0.0, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, f32::NAN];
        // Every exponent and sign, with remainders below, at and above a half.
        let all = (0..=u32::MAX).step_by(0x1FFF).map(f32::from_bits);
        let halves = (0..=u32::MAX).step_by(0x8000).map(f32::from_bits);
        for x in special.into_iter().chain(all).chain(halves) {
            for x in [x, -x] {
                let (found, expected) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
                assert_eq!(found.to_bits(), expected.to_bits(), "{x} {:x}", x.to_bits());
            }
        }
        // Not a carry into infinity's mantissa, nor a NaN whose upper half is infinity.
        for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001] {
            assert!(<bf16 as Element>::from_f32(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn slices_are_converted_entry_by_entry() {
        let wide = benches::fill(1, 1003);
        let mut rounded = vec![bf16::ZERO; wide.len()];
        narrow(&wide, &mut rounded);
        let expected: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
        assert_eq!(rounded, expected);
        let mut back = vec![f32::NAN; wide.len()];
        widen(&rounded, &mut back);
        assert!(back.iter().zip(&expected).all(|(x, e)| *x == e.to_f32()));
    }
}
