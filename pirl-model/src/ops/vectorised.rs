//! Plain loops compiled for the processor's wider vectors.

/// Defines a function compiled twice, for AVX2 and for the target's baseline, and chosen on call.
/// Its loops are plain, so both give the same bits.
macro_rules! vectorised {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$t:ident: $bound:ident>)? ($($arg:ident: $type:ty),* $(,)?)
        $body:block
    ) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "a loop over plain slices")]
        $vis fn $name $(<$t: $bound>)? ($($arg: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            fn body $(<$t: $bound>)? ($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2 $(<$t: $bound>)? ($($arg: $type),*) {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

pub(super) use vectorised;
