//! The types that activations are stored in: `f32`, or `bf16` or `f16` at half the memory.
//!
//! Whatever the type, ops compute in `f32` and round what they store.

use candle_core::DType;
use half::{bf16, f16};
use pirl_core::vectorised;

/// Number types of which every pattern of bits is a value, so that memory of unspecified contents may
/// be read as them.
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
// SAFETY: 16 plain bits.
unsafe impl Plain for f16 {}

/// The type of a stored activation, or of its gradient; sealed.
pub trait Element: Plain + PartialEq + std::fmt::Debug {
    /// `F32`, `BF16` or `F16`.
    const DTYPE: DType;

    /// The number as `f32`, exactly.
    fn to_f32(self) -> f32;

    /// The nearest number of this type, of two equally near ones the even; a NaN stays one.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

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
    const DTYPE: DType = DType::BF16;

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

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    // Both ways in a few operations without branches or tables, as `bf16`'s.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let (sign, size) = ((bits & 0x8000) << 16, (bits & 0x7FFF) << 13);
        // Exponents count from 15 there and from 127 here; the product also normalises what is below
        // the least of them. Infinities and NaNs keep the greatest exponent.
        let scaled = (f32::from_bits(size) * f32::from_bits((127 + 127 - 15) << 23)).to_bits();
        let special = size | 0x7F80_0000;
        f32::from_bits(sign | if size >= 0x0F80_0000 { special } else { scaled })
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        /// What rounds to infinity: 65,520, half a step beyond the greatest number.
        const INFINITE: u32 = 0x477F_F000;
        /// The least number with a whole mantissa, 2^-14.
        const NORMAL: u32 = 0x3880_0000;
        let bits = x.to_bits();
        let (sign, size) = (bits >> 16 & 0x8000, bits & 0x7FFF_FFFF);
        // 13 bits of the mantissa go, to the even of two neighbours.
        let nearest = size.wrapping_add(0xFFF + (size >> 13 & 1));
        let normal = nearest.wrapping_sub(NORMAL - 0x0080_0000) >> 13;
        // Below, a step is 2^-24 wherever: that of `f32` numbers from 1/2 to 1, so adding 1/2 rounds.
        let tiny = (f32::from_bits(size) + 0.5)
            .to_bits()
            .wrapping_sub(0x3F00_0000);
        let special = if size > 0x7F80_0000 { 0x7E00 } else { 0x7C00 };
        let finite = if size < NORMAL { tiny } else { normal };
        let size = if size >= INFINITE { special } else { finite };
        Self::from_bits((sign | size) as u16)
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
        let edges = [
            65_504.0,
            65_519.99,
            65_520.0,
            2f32.powi(-14),
            2f32.powi(-25),
        ];
        // Every exponent and sign, with remainders below, at and above a half.
        let all = (0..=u32::MAX).step_by(0x1FFF).map(f32::from_bits);
        let halves = (0..=u32::MAX).step_by(0x1000).map(f32::from_bits);
        let special = special.into_iter().chain(edges);
        for x in special.chain(all).chain(halves) {
            for x in [x, -x] {
                let (found, expected) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
                assert_eq!(found.to_bits(), expected.to_bits(), "{x} {:x}", x.to_bits());
                let (found, expected) = (<f16 as Element>::from_f32(x), f16::from_f32(x));
                let same = found.to_bits() == expected.to_bits();
                assert!(same || x.is_nan(), "{x} {:x}: {found}", x.to_bits());
                assert_eq!(found.is_nan(), x.is_nan());
            }
        }
        // Not a carry into infinity's mantissa, nor a NaN whose upper half is infinity.
        for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001] {
            assert!(<bf16 as Element>::from_f32(f32::from_bits(bits)).is_nan());
            assert!(<f16 as Element>::from_f32(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn all_halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (found, expected) = (Element::to_f32(half), half.to_f32());
            let same = found.to_bits() == expected.to_bits();
            assert!(same || (found.is_nan() && expected.is_nan()), "{bits:x}");
        }
    }

    fn check_slices<T: Element>() {
        let wide = benches::fill(1, 1003);
        let mut rounded = vec![T::from_f32(0.0); wide.len()];
        narrow(&wide, &mut rounded);
        let expected: Vec<T> = wide.iter().map(|&x| T::from_f32(x)).collect();
        assert_eq!(rounded, expected);
        let mut back = vec![f32::NAN; wide.len()];
        widen(&rounded, &mut back);
        assert!(back.iter().zip(&expected).all(|(x, e)| *x == e.to_f32()));
    }

    #[test]
    fn slices_are_converted_entry_by_entry() {
        check_slices::<f32>();
        check_slices::<bf16>();
        check_slices::<f16>();
    }
}
