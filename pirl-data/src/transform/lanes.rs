//! Pixels in vectors: plain loops over blocks of 32 pixels, channels apart.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

/// Pixels in a block: as many as bytes in a vector of AVX2.
pub(super) const LANES: usize = 32;

/// Values of 32 pixels: red, green, blue.
pub(super) type Block = [[u8; LANES]; 3];

/// Bytes of a block as an image has them.
pub(super) const BYTES: usize = 3 * LANES;

/// What is done to 32 pixels.
///
/// A trait, because closures and function pointers need not be inlined, and are then compiled for
/// the baseline: mark the method `inline(always)`.
pub(super) trait Change {
    fn change(&mut self, block: &mut Block);
}

/// What is computed from 32 pixels; see [`Change`].
pub(super) trait Visit {
    fn visit(&mut self, block: &Block);
}

/// Changes all pixels, 32 at a time. The last block is filled up with black.
#[inline(always)]
pub(super) fn change(pixels: &mut [u8], mut work: impl Change) {
    let (whole, rest) = pixels.as_chunks_mut::<BYTES>();
    for bytes in whole {
        let mut block = apart(bytes);
        work.change(&mut block);
        together(&block, bytes);
    }
    if !rest.is_empty() {
        let mut bytes = [0; BYTES];
        bytes[..rest.len()].copy_from_slice(rest);
        let mut block = apart(&bytes);
        work.change(&mut block);
        together(&block, &mut bytes);
        rest.copy_from_slice(&bytes[..rest.len()]);
    }
}

/// Visits all pixels, 32 at a time. The last block is filled up with black.
#[inline(always)]
pub(super) fn visit(pixels: &[u8], work: &mut impl Visit) {
    let (whole, rest) = pixels.as_chunks::<BYTES>();
    for bytes in whole {
        work.visit(&apart(bytes));
    }
    if !rest.is_empty() {
        let mut bytes = [0; BYTES];
        bytes[..rest.len()].copy_from_slice(rest);
        work.visit(&apart(&bytes));
    }
}

/// The channels of 32 pixels.
#[inline(always)]
pub(super) fn apart(bytes: &[u8; BYTES]) -> Block {
    let mut block = [[0; LANES]; 3];
    for lane in 0..LANES {
        block[0][lane] = bytes[3 * lane];
        block[1][lane] = bytes[3 * lane + 1];
        block[2][lane] = bytes[3 * lane + 2];
    }
    block
}

#[inline(always)]
fn together(block: &Block, bytes: &mut [u8; BYTES]) {
    for lane in 0..LANES {
        bytes[3 * lane] = block[0][lane];
        bytes[3 * lane + 1] = block[1][lane];
        bytes[3 * lane + 2] = block[2][lane];
    }
}

/// `value` cut off to `0..=255`, towards zero; 0 for NaN.
///
/// The same as `value as u8`, in fewer instructions.
#[inline(always)]
pub(super) fn to_byte(value: f32) -> u8 {
    // Written so that a NaN fails the first comparison.
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    // SAFETY: the comparisons leave a number from 0 to 255, which an `i32` holds.
    let whole: i32 = unsafe { value.to_int_unchecked() };
    whole as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    struct AddToRed;

    impl Change for AddToRed {
        fn change(&mut self, block: &mut Block) {
            block[0] = block[0].map(|value| value.wrapping_add(1));
        }
    }

    struct SumOfBlue(u64);

    impl Visit for SumOfBlue {
        fn visit(&mut self, block: &Block) {
            self.0 += block[2].iter().map(|value| u64::from(*value)).sum::<u64>();
        }
    }

    #[test]
    fn every_pixel_is_seen_once_and_kept() {
        for pixels in [0, 1, 31, 32, 33, 100] {
            let bytes: Vec<u8> = (0..pixels * 3).map(|i| (i * 7 % 251) as u8).collect();
            let mut changed = bytes.clone();
            change(&mut changed, AddToRed);
            for (new, old) in changed.chunks(3).zip(bytes.chunks(3)) {
                assert_eq!(new, [old[0].wrapping_add(1), old[1], old[2]]);
            }
            let mut blue = SumOfBlue(0);
            visit(&bytes, &mut blue);
            let expected: u64 = bytes.chunks(3).map(|pixel| u64::from(pixel[2])).sum();
            assert_eq!(blue.0, expected);
        }
    }

    #[test]
    fn bytes_are_cut_as_a_cast_cuts_them() {
        for value in [
            -1e30, -1.0, -0.5, 0.0, 0.99, 1.0, 254.99, 255.0, 256.0, 1e30,
        ] {
            assert_eq!(to_byte(value), value as u8, "{value}");
        }
        assert_eq!(to_byte(f32::NAN), 0);
    }
}
