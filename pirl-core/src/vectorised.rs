//! Plain loops compiled for the processor's wider vectors.

/// Defines a function compiled three times, for AVX-512, for AVX2 and for the target's baseline, and
/// chosen on call by [`Instructions::in_use`](crate::Instructions::in_use). Its loops are plain, so all
/// give the same bits. What it calls is compiled for them only where it is inlined.
///
/// ```
/// pirl_core::vectorised! {
///     /// Adds `x` to every number.
///     fn shift(numbers: &mut [f32], x: f32) -> usize {
///         numbers.iter_mut().for_each(|number| *number += x);
///         numbers.len()
///     }
/// }
/// let mut numbers = [1.0, 2.0];
/// assert_eq!(shift(&mut numbers, 0.5), 2);
/// assert_eq!(numbers, [1.5, 2.5]);
/// ```
#[macro_export]
macro_rules! vectorised {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$t:ident: $bound:ident>)? ($($arg:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? $body:block
    ) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "a loop over plain slices")]
        $vis fn $name $(<$t: $bound>)? ($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            fn body $(<$t: $bound>)? ($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2 $(<$t: $bound>)? ($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                // With operations on 16-bit words, as `bf16` needs, which the foundation lacks.
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512 $(<$t: $bound>)? ($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                match $crate::Instructions::in_use() {
                    $crate::Instructions::Baseline => body($($arg),*),
                    // SAFETY: sets in use are the processor's, and this one's is the only demand.
                    $crate::Instructions::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    _ => unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($arg),*)
        }
    };
}
