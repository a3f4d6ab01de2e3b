//! Registers as the micro-kernels see them, one type for each instruction set.

use candle_core::DType;
use pirl_core::Instructions;

use super::lane::{Lane, Pair};
use crate::ops::Element;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Products of pairs in plain arrays, so that every machine can test what only some can run.
    #[cfg(test)]
    Pairs,
    /// Plain arrays, which the compiler vectorises as far as the target's baseline goes.
    Portable,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of pairs of `bf16`.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The fastest set in use for activations of type `T`.
    pub(crate) fn best<T: Element>() -> Isa {
        Isa::of::<T>(Instructions::in_use())
    }

    /// Numbers that the direct kernels multiply in each lane of a register.
    pub(crate) fn lane_numbers(self) -> usize {
        match self {
            #[cfg(test)]
            Isa::Pairs => Pair::NUMBERS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Pair::NUMBERS,
            _ => f32::NUMBERS,
        }
    }

    fn of<T: Element>(set: Instructions) -> Isa {
        match set {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 if T::DTYPE == DType::BF16 => Isa::Avx512Bf16,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 | Instructions::Avx512Bf16 => Isa::Avx512,
            _ => Isa::Portable,
        }
    }

    /// Every set in use for activations of type `T`, the slowest first.
    #[cfg(test)]
    pub(crate) fn available<T: Element>() -> Vec<Isa> {
        let sets = Instructions::ALL.into_iter();
        let sets = sets.filter(|set| *set <= Instructions::in_use());
        let mut all: Vec<Isa> = sets.map(Isa::of::<T>).collect();
        all.dedup();
        if T::DTYPE == DType::BF16 {
            all.insert(0, Isa::Pairs);
        }
        all
    }
}

/// A register of `LANES` sums.
///
/// # Safety
/// Calling a method is sound only on a processor that has the instruction set of the type, and the
/// methods optimise well only when inlined into a function compiled for it.
pub(super) unsafe trait Register: Copy {
    /// Numbers in one register.
    const LANES: usize;

    /// Zeros.
    unsafe fn zero() -> Self;

    /// The same number everywhere.
    unsafe fn splat(x: f32) -> Self;

    /// The `LANES` numbers at `from`, which need not be aligned.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(from: *const f32) -> Self;

    /// Writes the `LANES` numbers to `to`, which need not be aligned.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, to: *mut f32);

    /// The `LANES` numbers at `from` as `f32`.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    unsafe fn widen<T: Element>(from: *const T) -> Self {
        /// The most numbers in a register, over all instruction sets.
        const MOST: usize = 16;
        let mut wide = [0f32; MOST];
        // SAFETY: the caller's promises are passed on; a register has at most `MOST` numbers.
        unsafe {
            if T::DTYPE == DType::F32 {
                return Self::load(from.cast());
            }
            for (i, wide) in wide[..Self::LANES].iter_mut().enumerate() {
                *wide = (*from.add(i)).to_f32();
            }
            Self::load(wide.as_ptr())
        }
    }

    /// `self + other`.
    unsafe fn plus(self, other: Self) -> Self;

    /// `self - other`.
    unsafe fn minus(self, other: Self) -> Self;

    /// `self + a * b`, rounded once or twice.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
}

/// How lanes are multiplied and added to sums.
///
/// # Safety
/// As for [`Register`].
pub(super) unsafe trait Product {
    /// Where the products are added up.
    type Sums: Register;
    /// What one lane multiplies.
    type Lane: Lane;
    /// A register of as many lanes as there are sums.
    type Factors: Copy;

    /// The same lane everywhere.
    unsafe fn splat(x: Self::Lane) -> Self::Factors;

    /// The lanes at `from`, which need not be aligned to more than one of them.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(from: *const Self::Lane) -> Self::Factors;

    /// `sums + a * b`; whether products are rounded first, and in which order the two of a pair are
    /// added, depends on the type.
    unsafe fn add(sums: Self::Sums, a: Self::Factors, b: Self::Factors) -> Self::Sums;
}

/// Two SSE or NEON registers' worth of numbers, without a word of assembly.
#[derive(Clone, Copy)]
pub(super) struct PlainRegister([f32; 8]);

// SAFETY: plain arrays run anywhere.
unsafe impl Register for PlainRegister {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        PlainRegister([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        PlainRegister([x; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 8 readable numbers; an array of f32 read unaligned has no
        // further demands.
        PlainRegister(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 8 writable numbers.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for (sum, x) in self.0.iter_mut().zip(other.0) {
            *sum += x;
        }
        self
    }

    #[inline(always)]
    unsafe fn minus(mut self, other: Self) -> Self {
        for (difference, x) in self.0.iter_mut().zip(other.0) {
            *difference -= x;
        }
        self
    }

    #[inline(always)]
    unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum += a * b;
        }
        self
    }
}

// SAFETY: plain arrays run anywhere.
unsafe impl Product for PlainRegister {
    type Sums = PlainRegister;
    type Lane = f32;
    type Factors = PlainRegister;

    #[inline(always)]
    unsafe fn splat(x: f32) -> PlainRegister {
        // SAFETY: plain arrays run anywhere.
        unsafe { <PlainRegister as Register>::splat(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> PlainRegister {
        // SAFETY: the caller's promise is passed on.
        unsafe { <PlainRegister as Register>::load(from) }
    }

    #[inline(always)]
    unsafe fn add(sums: PlainRegister, a: PlainRegister, b: PlainRegister) -> PlainRegister {
        // SAFETY: plain arrays run anywhere.
        unsafe { sums.plus_product(a, b) }
    }
}

/// Pairs in plain arrays.
#[cfg(test)]
pub(super) struct PlainPairs;

// SAFETY: plain arrays run anywhere.
#[cfg(test)]
unsafe impl Product for PlainPairs {
    type Sums = PlainRegister;
    type Lane = Pair;
    type Factors = [Pair; 8];

    unsafe fn splat(x: Pair) -> [Pair; 8] {
        [x; 8]
    }

    unsafe fn load(from: *const Pair) -> [Pair; 8] {
        // SAFETY: the caller promises 8 readable pairs.
        unsafe { from.cast::<[Pair; 8]>().read() }
    }

    // The order of `vdpbf16ps`: the second products first.
    unsafe fn add(mut sums: PlainRegister, a: [Pair; 8], b: [Pair; 8]) -> PlainRegister {
        for ((sum, a), b) in sums.0.iter_mut().zip(a).zip(b) {
            for k in [1, 0] {
                *sum += a.0[k].to_f32() * b.0[k].to_f32();
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::DotBf16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pair, Product, Register};
    use core::arch::x86_64::*;

    // SAFETY: every method's intrinsics need AVX2 and FMA at most, which the trait's contract
    // grants; pointers are the caller's promise, and the intrinsics used ask for no alignment.
    unsafe impl Register for __m256 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
    }

    // SAFETY: as above.
    unsafe impl Product for __m256 {
        type Sums = __m256;
        type Lane = f32;
        type Factors = __m256;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { <Self as Register>::splat(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { <Self as Register>::load(from) }
        }

        #[inline(always)]
        unsafe fn add(sums: Self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { sums.plus_product(a, b) }
        }
    }

    // SAFETY: as above, with AVX-512F.
    unsafe impl Register for __m512 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
    }

    // SAFETY: as above.
    unsafe impl Product for __m512 {
        type Sums = __m512;
        type Lane = f32;
        type Factors = __m512;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { <Self as Register>::splat(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { <Self as Register>::load(from) }
        }

        #[inline(always)]
        unsafe fn add(sums: Self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { sums.plus_product(a, b) }
        }
    }

    /// Pairs of `bf16` with `vdpbf16ps`, which adds up both products in `f32`.
    pub(in super::super) struct DotBf16;

    // SAFETY: as above, with AVX512-BF16.
    unsafe impl Product for DotBf16 {
        type Sums = __m512;
        type Lane = Pair;
        type Factors = __m512i;

        #[inline(always)]
        unsafe fn splat(x: Pair) -> __m512i {
            let [first, second] = x.0.map(|x| u32::from(x.to_bits()));
            // SAFETY: as for the whole impl.
            unsafe { _mm512_set1_epi32((second << 16 | first).cast_signed()) }
        }

        #[inline(always)]
        unsafe fn load(from: *const Pair) -> __m512i {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn add(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: as for the whole impl; both types are 512 plain bits.
            unsafe {
                let bf16 = |x: __m512i| core::mem::transmute::<__m512i, __m512bh>(x);
                _mm512_dpbf16_ps(sums, bf16(a), bf16(b))
            }
        }
    }
}
