//! Large JPEGs decoded at an eighth, a quarter or half of their size, by jpeg-decoder: its cosine transform makes 1, 2
//! or 4 pixels a side out of the 8 of a block, so that the whole image is never in memory.
//!
//! It goes on with zeros where entropy-coded data end too soon, so it is given
//! [guarded](jpeg_markers::guarded) data; and whatever it refuses zune-jpeg decides on, at full size.

use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};

use super::jpeg_markers;
use crate::Image;

/// From so many pixels on, 100 MB, memory counts for more than time: of smaller ones the whole image is decoded
/// sooner.
const LEAST_PIXELS: usize = 32_000_000;

/// How many times smaller to decode an image of this size whose shorter side will have at most so many pixels:
/// twice as many must be left, for then what is resized further hardly differs from the whole image resized.
/// `None` to decode it as it is.
pub(super) fn factor((width, height): (usize, usize), shorter: usize) -> Option<usize> {
    let most = width.min(height) / shorter.saturating_mul(2).max(1);
    let factor = [8, 4, 2].into_iter().find(|by| *by <= most);
    factor.filter(|_| width.saturating_mul(height) >= LEAST_PIXELS)
}

/// Decodes a mended YCbCr JPEG of this size `by` times smaller, sides rounded up, without converting its colours
/// or turning it; `by` is 2, 4 or 8. `None`, and `out` as it was, for what is not sequential or not of one scan,
/// and for what the decoder refuses.
pub(super) fn decode(
    bytes: &[u8],
    (width, height): (usize, usize),
    by: usize,
    out: &mut Image,
) -> Option<()> {
    let bytes = jpeg_markers::guarded(bytes)?;
    let mut decoder = Decoder::new(&*bytes);
    // As they are: of three channels this transform only puts them beside each other.
    decoder.set_color_transform(ColorTransform::RGB);
    let small = (width.div_ceil(by), height.div_ceil(by));
    let asked = (u16::try_from(small.0).ok()?, u16::try_from(small.1).ok()?);
    let (wide, high) = decoder.scale(asked.0, asked.1).ok()?;
    if (usize::from(wide), usize::from(high)) != small
        || decoder.info()?.pixel_format != PixelFormat::RGB24
    {
        return None;
    }
    let pixels = decoder.decode().ok()?;
    let image = Image::new(small.0, small.1, pixels).ok()?;
    *out = image;
    Some(())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::{Encoding, MAX_PIXELS, decode_ycbcr_into};
    use super::*;
    use crate::transform::{Crop, Resizer, resize, resize_part};

    /// Smooth colours, edges and noise.
    fn scene(width: usize, height: usize) -> Image {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let edge = if (x / 37 + y / 23).is_multiple_of(3) {
                    60.0
                } else {
                    0.0
                };
                let wave = (x as f64 / 9.0).sin() * 30.0 + (y as f64 / 31.0).cos() * 40.0;
                let base = [100.0 + wave, 90.0 + edge, 160.0 * x as f64 / width as f64];
                let noise = rng.random_range(-12.0..12.0);
                pixels
                    .extend(base.map(|value: f64| (value + noise + edge).clamp(0.0, 255.0) as u8));
            }
        }
        Image::new(width, height, pixels).unwrap()
    }

    fn jpeg(image: &Image, edit: impl Fn(&mut jpeg_encoder::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        edit(&mut encoder);
        let (width, height) = (image.width as u16, image.height as u16);
        let color = jpeg_encoder::ColorType::Rgb;
        encoder.encode(&image.pixels, width, height, color).unwrap();
        bytes
    }

    fn whole(bytes: &[u8]) -> Result<Image, String> {
        let mut image = Image::empty();
        let found = decode_ycbcr_into(bytes, Encoding::Jpeg, MAX_PIXELS, None, &mut image)?;
        found.map(|_| image).ok_or_else(|| "no YCbCr".to_owned())
    }

    fn shrunk(bytes: &[u8], size: (usize, usize), by: usize) -> Option<Image> {
        let mut image = Image::empty();
        decode(bytes, size, by, &mut image).map(|()| image)
    }

    #[test]
    fn twice_as_many_pixels_as_asked_for_are_left() {
        assert_eq!(factor((12_000, 9_000), 256), Some(8));
        assert_eq!(factor((12_000, 4_096), 256), Some(8));
        assert_eq!(factor((12_000, 4_095), 256), Some(4));
        assert_eq!(factor((9_000, 12_000), 2_250), Some(2));
        assert_eq!(factor((9_000, 12_000), 2_251), None);
        assert_eq!(factor((9_000, 12_000), usize::MAX), None);
        assert_eq!(factor((6_000, 5_000), 256), None, "small enough as it is");
    }

    /// How far values may be apart on average, and at most: of noise and of edges every two pixels of the result, where
    /// what was found is 1.3 and 7. A photograph that is packed is nearer (`tests/shrinking.rs`).
    const BRIGHTNESS: (f64, f64) = (1.5, 9.0);
    /// The same of colours, found 3.4 and 10: at an eighth those of 4:2:0 have the resolution of the result, and are
    /// smoothed. The JPEG that is packed halves it anyway.
    const COLOR: (f64, f64) = (4.0, 12.0);

    #[test]
    fn a_shrunk_image_resized_is_the_whole_one_resized() {
        use jpeg_encoder::SamplingFactor::{F_1_1, F_1_2, F_2_1, F_2_2};
        let image = scene(1_237, 941);
        let mut resizer = Resizer::default();
        for sampling in [F_1_1, F_1_2, F_2_1, F_2_2] {
            let bytes = jpeg(&image, |encoder| {
                encoder.set_sampling_factor(sampling);
                encoder.set_restart_interval(if sampling == F_2_1 { 7 } else { 0 });
            });
            let whole = whole(&bytes).unwrap();
            for by in [2, 4, 8] {
                let small = shrunk(&bytes, (1_237, 941), by).unwrap();
                assert_eq!(
                    (small.width, small.height),
                    (1_237_usize.div_ceil(by), 941_usize.div_ceil(by))
                );
                let size = (1_237 / (2 * by), 941 / (2 * by));
                let (mut wanted, mut found) = (Image::empty(), Image::empty());
                resize(
                    &mut resizer,
                    &whole,
                    Crop::whole(&whole),
                    size.0,
                    size.1,
                    &mut wanted,
                )
                .unwrap();
                let part = [0.0, 0.0, 1_237.0 / by as f64, 941.0 / by as f64];
                resize_part(&mut resizer, &small, part, size, &mut found).unwrap();
                // Brightness, and colours, whose own resolution is half of it in all but one sampling.
                for (channel, (mean_bound, most_bound)) in [(0, BRIGHTNESS), (1, COLOR), (2, COLOR)]
                {
                    let values = |image: &Image| -> Vec<u8> {
                        image
                            .pixels
                            .iter()
                            .skip(channel)
                            .step_by(3)
                            .copied()
                            .collect()
                    };
                    let apart = values(&found).into_iter().zip(values(&wanted));
                    let apart: Vec<f64> = apart.map(|(a, b)| f64::from(a.abs_diff(b))).collect();
                    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
                    let most = apart.iter().copied().fold(0.0, f64::max);
                    eprintln!(
                        "{sampling:?}, {by}, {channel}: {mean:.3} on average, {most} at most"
                    );
                    assert!(
                        mean < mean_bound && most < most_bound,
                        "{sampling:?}, {by}: {mean}, {most}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_several_scans_is_decoded_whole() {
        let image = scene(96, 72);
        let sequential = jpeg(&image, |_| {});
        let progressive = jpeg(&image, |encoder| encoder.set_progressive(true));
        assert!(shrunk(&sequential, (96, 72), 8).is_some());
        assert!(shrunk(&progressive, (96, 72), 8).is_none());
        assert!(
            shrunk(&sequential, (97, 72), 8).is_none(),
            "another size than in the header"
        );
    }

    /// What is decoded smaller decodes as a whole, too: of damaged files as many are refused.
    #[test]
    fn damage_that_shows_in_the_whole_image_shows_in_the_shrunk_one() {
        let image = scene(96, 72);
        let files =
            [0, 5].map(|interval| jpeg(&image, |encoder| encoder.set_restart_interval(interval)));
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (mut both, mut shrunk_only, mut whole_only) = (0, 0, 0);
        for number in 0..4_000 {
            let mut bytes = files[number % 2].clone();
            let start = bytes
                .windows(2)
                .position(|pair| pair == [0xFF, 0xDA])
                .unwrap();
            for _ in 0..1 + number % 3 {
                let at = rng.random_range(start..bytes.len() - 2);
                match rng.random_range(0..3) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = rng.random(),
                    // The end comes sooner, but it comes.
                    _ => drop(bytes.drain(at..(at + 40).min(bytes.len() - 2))),
                }
            }
            let mended = super::jpeg_markers::mended(&bytes);
            let small = mended.ok().and_then(|bytes| shrunk(&bytes, (96, 72), 8));
            match (small.is_some(), whole(&bytes).is_ok()) {
                (true, true) => both += 1,
                (true, false) => shrunk_only += 1,
                (false, true) => whole_only += 1,
                (false, false) => {}
            }
        }
        eprintln!("both {both}, shrunk only {shrunk_only}, whole only {whole_only}");
        assert!(
            both > 400 && shrunk_only < 40,
            "{both}, {shrunk_only}, {whole_only}"
        );
    }
}
