//! Every kind of file becomes 8-bit RGB, or an error.

mod common;

use common::{Samples, jpeg, list_dir, picture, png};
use image::{DynamicImage, ImageFormat};
use pirl_data::{Encoding, Image, OtherFormat, Pack, PackOptions, Reencode, pack};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::Cursor;
use tempfile::TempDir;

/// Through a pack, which is how images are decoded; the reason when it is skipped.
fn decode(bytes: Vec<u8>, encoding: Encoding) -> Result<Image, String> {
    let dir = TempDir::new().unwrap();
    let source = Samples {
        samples: vec![(bytes, encoding, None)],
        class_names: Vec::new(),
        objects: None,
        first: 0,
    };
    let options = PackOptions {
        strict: true,
        ..PackOptions::default()
    };
    let output = dir.path().join("one");
    pack(&source, &output, &options, &mut |_, _| {}).map_err(|error| error.to_string())?;
    Ok(Pack::open(output).unwrap().decode(0).unwrap())
}

fn file(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn grey_is_repeated() {
    let grey = image::GrayImage::from_fn(16, 8, |x, y| image::Luma([(x * 8 + y) as u8]));
    for (format, encoding, tolerance) in [
        (ImageFormat::Png, Encoding::Png, 0),
        (ImageFormat::Jpeg, Encoding::Jpeg, 12),
    ] {
        let decoded = decode(file(grey.clone().into(), format), encoding).unwrap();
        assert_eq!((decoded.width, decoded.height), (16, 8));
        for (rgb, expected) in decoded.pixels.chunks(3).zip(grey.as_raw()) {
            assert!(rgb[0] == rgb[1] && rgb[1] == rgb[2], "{rgb:?}");
            assert!(
                rgb[0].abs_diff(*expected) <= tolerance,
                "{rgb:?} {expected}"
            );
        }
    }
}

#[test]
fn sixteen_bits_and_alpha_are_dropped() {
    let deep = image::ImageBuffer::from_fn(3, 2, |x, y| {
        image::Rgba([0xFFFF_u16, (x * 257) as u16, (y * 2570) as u16, 0])
    });
    let decoded = decode(
        file(DynamicImage::ImageRgba16(deep), ImageFormat::Png),
        Encoding::Png,
    )
    .unwrap();
    assert_eq!(decoded.pixel(2, 1), Some([255, 2, 10]));
}

#[test]
fn jpeg_colours_are_kept() {
    let original = picture(40, 24);
    let decoded = decode(jpeg(&original), Encoding::Jpeg).unwrap();
    assert_eq!((decoded.width, decoded.height), (40, 24));
    let worst = decoded
        .pixels
        .iter()
        .zip(&original.pixels)
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(worst < Some(12), "{worst:?}");
}

#[test]
fn raw_pixels_have_one_or_three_channels() {
    let raw = |channels| Encoding::Raw {
        height: 1,
        width: 2,
        channels,
    };
    assert_eq!(
        decode(vec![1, 2], raw(1)).unwrap().pixels,
        [1, 1, 1, 2, 2, 2]
    );
    assert_eq!(
        decode(vec![1, 2, 3, 4, 5, 6], raw(3)).unwrap().pixels,
        [1, 2, 3, 4, 5, 6]
    );
    assert!(
        decode(vec![1, 2, 3, 4], raw(2))
            .unwrap_err()
            .contains("2 channels")
    );
    assert!(decode(vec![1], raw(1)).is_err());
}

#[test]
fn a_jpeg_cut_anywhere_is_truncated() {
    let whole = jpeg(&picture(64, 48));
    for missing in [1, 2, 3, 10, 100, whole.len() / 2, whole.len() - 4] {
        let cut = whole[..whole.len() - missing].to_vec();
        assert!(
            decode(cut, Encoding::Jpeg).is_err(),
            "{missing} bytes missing"
        );
    }
    let mut followed = whole.clone();
    followed.extend(b"what some cameras append");
    assert!(decode(followed, Encoding::Jpeg).is_ok());
}

#[test]
fn a_thumbnail_does_not_hide_that_its_image_is_cut() {
    let whole = jpeg(&picture(64, 48));
    let thumbnail = jpeg(&picture(8, 8));
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1];
    bytes.extend((thumbnail.len() as u16 + 2).to_be_bytes());
    bytes.extend(&thumbnail);
    bytes.extend(&whole[2..]);
    assert!(decode(bytes.clone(), Encoding::Jpeg).is_ok());
    bytes.truncate(bytes.len() - 100);
    assert!(
        decode(bytes, Encoding::Jpeg)
            .unwrap_err()
            .contains("truncated")
    );
}

#[test]
fn huge_headers_are_refused_before_memory_is_taken() {
    // The size is in the SOF0 segment of a JPEG and at byte 16 of a PNG.
    let mut bytes = jpeg(&picture(16, 16));
    let sof = bytes
        .windows(2)
        .position(|pair| pair == [0xFF, 0xC0])
        .unwrap();
    bytes[sof + 5..sof + 9].fill(0xFF);
    let error = decode(bytes, Encoding::Jpeg).unwrap_err();
    assert!(error.contains("65535 x 65535"), "{error}");

    let mut bytes = png(&picture(16, 16));
    bytes[16..20].copy_from_slice(&100_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&100_000_u32.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    let error = decode(bytes, Encoding::Png).unwrap_err();
    assert!(error.contains("100000 x 100000"), "{error}");
}

/// The check sum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Packing as they are checks images sooner than it could decode them; it must find the same.
#[test]
fn what_is_packed_decodes_and_what_is_skipped_does_not() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/decode");
    let names = list_dir(golden.as_ref()).into_iter();
    let jpegs: Vec<Vec<u8>> = names
        .filter(|name| name.ends_with(".jpg"))
        .map(|name| std::fs::read(format!("{golden}/{name}")).unwrap())
        .collect();
    assert!(jpegs.len() > 10);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let damaged = |number: usize| {
        let mut bytes = jpegs[number % jpegs.len()].clone();
        for _ in 0..number / jpegs.len() % 4 {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..5) {
                0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
                2 => bytes[at] = [0, 1, 0x7F, 0xFF][rng.random_range(0..4)],
                3 => bytes.truncate(at.max(4)),
                _ => {
                    let end = (at + 8).min(bytes.len());
                    rng.fill_bytes(&mut bytes[at..end]);
                }
            }
        }
        (bytes, Encoding::Jpeg, None)
    };
    let source = Samples {
        samples: (0..4000).map(damaged).collect(),
        class_names: Vec::new(),
        objects: None,
        first: 0,
    };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("many");
    let report = pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
    let skipped: Vec<&str> = report.skipped.iter().map(|s| s.name.as_str()).collect();
    let broken: Vec<String> = (0..source.samples.len())
        .filter(|&index| Image::decode(&source.samples[index].0).is_err())
        .map(|index| format!("sample {index}"))
        .collect();
    let of_one = skipped.iter().zip(&broken).find(|(a, b)| a != b);
    assert!(skipped == broken, "{of_one:?}");
    assert!(broken.len() > 500 && report.packed > 1000);
}

/// The golden file, changed by `edit`, as a JPEG; the reason why it is refused.
fn refused(name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let path = format!("{}/tests/golden/decode/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(path).unwrap();
    assert!(Image::decode(&bytes).is_ok());
    edit(&mut bytes);
    Image::decode(&bytes).unwrap_err().to_string()
}

/// The places of restart markers.
fn restarts(bytes: &[u8]) -> Vec<usize> {
    let pairs = bytes.windows(2).enumerate();
    let found = pairs.filter(|(_, pair)| pair[0] == 0xFF && (0xD0..=0xD7).contains(&pair[1]));
    found.map(|(at, _)| at).collect()
}

#[test]
fn missing_restart_markers_are_noticed() {
    for which in [0, 1, usize::MAX] {
        let said = refused("restarts.jpg", |bytes| {
            let places = restarts(bytes);
            let at = places[which.min(places.len() - 1)];
            drop(bytes.drain(at..at + 2));
        });
        assert!(said.contains("restart marker"), "{said}");
    }
}

/// A scan for each component is what libjpeg reads and the decoder does not, when they are of different
/// resolution.
#[test]
fn what_the_decoder_gets_wrong_is_refused_by_name() {
    let said = refused("rgb-420.jpg", |bytes| {
        let scan = bytes
            .windows(2)
            .position(|pair| pair == [0xFF, 0xDA])
            .unwrap();
        // One component of three.
        bytes[scan + 4] = 1;
    });
    assert!(said.contains("scans of their own"), "{said}");
    let said = refused("rgb-444.jpg", |bytes| {
        let frame = bytes
            .windows(2)
            .position(|pair| pair == [0xFF, 0xC0])
            .unwrap();
        for (number, letter) in b"RGB".iter().enumerate() {
            bytes[frame + 10 + 3 * number] = *letter;
        }
    });
    assert!(said.contains("R, G and B"), "{said}");
}

#[test]
fn formats_that_are_not_read_are_named() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heif-convert"),
        (b"\0\0\0\x1Cftypavif\0\0\0\0mif1miaf", "AVIF"),
        // The brand that counts is not the first; what follows the box is none of it.
        (b"\0\0\0\x18ftypmif1\0\0\0\0avifmiaf", "avifdec"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0miafavif", "HEIC"),
        (b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000"),
        (b"II\x2B\0\x08\0\0\0", "BigTIFF"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"", "empty"),
        (b"P6 but no number follows", "no size"),
        (b"BM is no bitmap, only a sentence", "no image"),
        (b"P1 stands for the first", ""),
    ] {
        let said = Image::decode(bytes).unwrap_err().to_string();
        if name != "no size" {
            assert!(said.contains(name), "{said}");
        }
    }
}

#[test]
fn other_formats_are_encoded_anew_as_the_user_chose() {
    let original = picture(40, 24);
    let pixels = image::RgbImage::from_raw(40, 24, original.pixels.clone()).unwrap();
    let bytes = file(pixels.into(), ImageFormat::Bmp);
    for (reencode, encoding, tolerance) in [
        (Reencode::Png, Encoding::Png, 0),
        (Reencode::Jpeg, Encoding::Jpeg, 12),
    ] {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("one");
        let source = Samples {
            samples: vec![(bytes.clone(), Encoding::Other(OtherFormat::Bmp), None)],
            ..Samples::raw(0, 0)
        };
        let options = PackOptions {
            reencode: Some(reencode),
            ..PackOptions::default()
        };
        let report = pack(&source, &output, &options, &mut |_, _| {}).unwrap();
        assert_eq!(report.encoding, encoding);
        assert_eq!(
            (report.tally.reencoded, report.tally.formats["bmp"]),
            (1, 1)
        );
        let decoded = Pack::open(&output).unwrap().decode(0).unwrap();
        let pairs = decoded.pixels.iter().zip(&original.pixels);
        assert!(pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap() <= tolerance);
    }
}

#[test]
fn the_limit_of_pixels_can_be_raised_for_images_that_shrink() {
    let bytes = png(&picture(300, 200));
    let try_with = |max_pixels, resize_shorter| {
        let dir = TempDir::new().unwrap();
        let source = Samples {
            samples: vec![(bytes.clone(), Encoding::Png, None)],
            ..Samples::raw(0, 0)
        };
        let options = PackOptions {
            max_pixels,
            resize_shorter,
            ..PackOptions::default()
        };
        pack(&source, &dir.path().join("one"), &options, &mut |_, _| {}).map_err(|e| e.to_string())
    };
    assert!(try_with(60_000, None).is_ok() && try_with(60_000, Some(20)).is_ok());
    for shorter in [None, Some(20)] {
        let said = try_with(59_999, shorter).unwrap_err();
        assert!(
            said.contains("300 x 200") && said.contains("59999"),
            "{said}"
        );
    }
}
