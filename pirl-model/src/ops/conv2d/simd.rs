//! Vectors of `f32` as the micro-kernels see them, one type for each instruction set.

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain arrays, which the compiler vectorises as far as the target's baseline goes.
    Portable,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 foundation.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every set this processor has, the slowest first; never empty.
    pub(crate) fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "other architectures add nothing")]
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The fastest set this processor has.
    pub(crate) fn best() -> Isa {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Isa::available().last().copied().unwrap_or(Isa::Portable))
    }
}

/// A register of `LANES` numbers.
///
/// # Safety
/// Calling a method is sound only on a processor that has the instruction set of the type, and the
/// methods optimise well only when inlined into a function compiled for it.
pub(super) unsafe trait Vector: Copy {
    /// Numbers in one register.
    const LANES: usize;

    /// Zeros.
    unsafe fn zero() -> Self;

    /// `LANES` times the same number.
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

    /// `self + a * b`; whether the product is rounded first depends on the type.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// `self + other`.
    unsafe fn plus(self, other: Self) -> Self;
}

/// Two SSE or NEON registers' worth of numbers, without a word of assembly.
#[derive(Clone, Copy)]
pub(super) struct Lanes([f32; 8]);

// SAFETY: plain arrays run anywhere.
unsafe impl Vector for Lanes {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Lanes([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Lanes([x; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 8 readable numbers; an array of f32 read unaligned has no
        // further demands.
        Lanes(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 8 writable numbers.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum += a * b;
        }
        self
    }

    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for (sum, x) in self.0.iter_mut().zip(other.0) {
            *sum += x;
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use core::arch::x86_64::*;

    // SAFETY: every method's intrinsics need AVX2 and FMA at most, which the trait's contract
    // grants; pointers are the caller's promise, and the intrinsics used ask for no alignment.
    unsafe impl Vector for __m256 {
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
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm256_add_ps(self, other) }
        }
    }

    // SAFETY: as above, with AVX-512F.
    unsafe impl Vector for __m512 {
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
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: as for the whole impl.
            unsafe { _mm512_add_ps(self, other) }
        }
    }
}
