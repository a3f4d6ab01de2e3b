//! The instruction sets that kernels are compiled for.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::SettingError;

/// Instruction sets of a processor, each with those before it. Kernels take the best there is.
///
/// The environment variable `PIRL_INSTRUCTIONS` holds a process to fewer than its processor has: to repeat
/// what another machine did, or to see what a set is worth. Candle's own matrix products do not heed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Instructions {
    /// What the program was compiled for.
    Baseline = 1,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512: foundation, bytes and words, doublewords and quadwords, shorter vectors.
    Avx512,
    /// AVX-512 with products of pairs of `bf16`.
    Avx512Bf16,
}

/// What [`Instructions::in_use`] found; 0 before it was asked.
static IN_USE: AtomicU8 = AtomicU8::new(0);

impl Instructions {
    /// All sets, the least first.
    pub const ALL: [Self; 4] = [Self::Baseline, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The environment variable with the best set that may be used.
    pub const VARIABLE: &str = "PIRL_INSTRUCTIONS";

    /// Its name in [`Instructions::VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }

    /// The best set of this processor.
    pub fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
                (true, true, true) => Self::Avx512Bf16,
                (true, true, false) => Self::Avx512,
                (true, false, _) => Self::Avx2,
                (false, ..) => Self::Baseline,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Baseline
    }

    /// What [`Instructions::VARIABLE`] allows; `None` where it is not set.
    ///
    /// # Errors
    /// If it names no set.
    pub fn allowed() -> Result<Option<Self>, SettingError> {
        match std::env::var_os(Self::VARIABLE) {
            None => Ok(None),
            Some(name) => name.to_string_lossy().parse().map(Some),
        }
    }

    /// The set that kernels take: the best that the processor has and the environment allows, found out
    /// once. A name that there is not allows all.
    #[inline]
    pub fn in_use() -> Self {
        match IN_USE.load(Relaxed) {
            1 => Self::Baseline,
            2 => Self::Avx2,
            3 => Self::Avx512,
            4 => Self::Avx512Bf16,
            _ => Self::find_out(),
        }
    }

    #[cold]
    fn find_out() -> Self {
        let allowed = Self::allowed().ok().flatten();
        let set = Self::of_processor().min(allowed.unwrap_or(Self::Avx512Bf16));
        IN_USE.store(set as u8, Relaxed);
        set
    }

    /// Has kernels take this set from now on, or the best of the processor if that is less, in all threads:
    /// for tests that compare sets.
    pub fn use_at_most(self) {
        IN_USE.store(self.min(Self::of_processor()) as u8, Relaxed);
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Instructions {
    type Err = SettingError;

    fn from_str(name: &str) -> Result<Self, SettingError> {
        let found = Self::ALL.into_iter().find(|set| set.name() == name);
        let expected = || {
            let names = Self::ALL.map(Self::name).join(", ");
            SettingError::new(Self::VARIABLE, name, format!("must be one of {names}"))
        };
        found.ok_or_else(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused_with_all_there_are() {
        for set in Instructions::ALL {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        let error = "sse9".parse::<Instructions>().unwrap_err().to_string();
        assert!(
            error.starts_with("PIRL_INSTRUCTIONS = sse9: must be one of baseline, avx2, avx512,"),
            "{error}"
        );
    }

    #[test]
    fn no_more_is_used_than_the_processor_has() {
        let best = Instructions::of_processor();
        for set in Instructions::ALL {
            set.use_at_most();
            assert_eq!(Instructions::in_use(), set.min(best));
        }
    }
}
