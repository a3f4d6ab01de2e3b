//! WebP files are packed as they are, unless they move, shrink, or are to be PNG or JPEG.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Samples, list_dir, overwrite, picture, webp, write};
use pirl_data::{
    DataConfig, Depth, Encoding, Image, ImageFolder, ImageStatistics, ImageView, Loader,
    LoaderConfig, OnCorrupt, Pack, PackOptions, PackReport, Reencode, ViewConfig,
};
use tempfile::TempDir;

/// Names and bytes of the golden files.
fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats");
    let names = list_dir(&folder).into_iter();
    let names = names.filter(|name| name.ends_with(".webp"));
    names
        .map(|name| (name.clone(), fs::read(folder.join(&name)).unwrap()))
        .collect()
}

fn file(name: &str) -> Vec<u8> {
    let found = golden().into_iter().find(|(known, _)| known == name);
    found.unwrap().1
}

/// Packs these files as a folder.
fn packed(
    files: &[(String, Vec<u8>)],
    options: &PackOptions,
) -> (TempDir, PathBuf, PackReport, Pack) {
    let dir = TempDir::new().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    for (name, bytes) in files {
        fs::write(images.join(name), bytes).unwrap();
    }
    let path = dir.path().join("set");
    let report = write(&ImageFolder::open(&images).unwrap(), &path, options);
    let pack = Pack::open(&path).unwrap();
    (dir, path, report, pack)
}

/// Whether a pack has nothing that is broken, and what its samples are.
fn verified(pack: &Pack) -> Vec<(String, usize)> {
    let found = pack.verify(&mut |_, _| {}, &|| false).unwrap();
    found.ensure_whole(pack).unwrap();
    found.encodings.into_iter().collect()
}

#[test]
fn still_images_are_kept_to_the_byte() {
    let mut files = golden();
    let animated = files.len();
    files.retain(|(name, _)| name != "animated.webp");
    assert!(files.len() == animated - 1 && files.len() > 12);
    // What follows the image stays, and says nothing.
    files[3].1.extend(b"what some programs append");
    let (_dir, path, report, pack) = packed(&files, &PackOptions::default());
    assert_eq!(
        (report.packed, report.encoding),
        (files.len(), Encoding::WebP)
    );
    assert_eq!(report.tally.reencoded, 0);
    assert_eq!(report.tally.formats["webp"], files.len());
    assert!(report.to_string().contains(", webp, "), "{report}");
    assert_eq!(pack.encoding(), Encoding::WebP);
    assert_eq!(pack.encoding().to_string(), "webp");
    for (index, (name, bytes)) in files.iter().enumerate() {
        assert_eq!(pack.bytes(index), Some(&**bytes), "{name}");
        // As decode_golden.rs holds against Pillow, upright.
        let image = Image::decode(bytes).unwrap();
        assert_eq!(pack.image_size(index).unwrap(), (image.width, image.height));
        assert_eq!(pack.decode(index).unwrap(), image, "{name}");
    }
    assert_eq!(verified(&pack), [("webp".to_owned(), files.len())]);
    let statistics = ImageStatistics::of(&pack, 0, &mut |_, _| {}, &|| false).unwrap();
    assert_eq!(statistics.longer_side.greatest, 16383);
    let header = fs::read(path.with_extension("safetensors")).unwrap();
    let header = String::from_utf8_lossy(&header[..2000]);
    assert!(header.contains("\"encoding\":\"webp\""), "{header}");
}

#[test]
fn an_animation_becomes_its_first_frame() {
    let (_dir, _, report, pack) = packed(&golden(), &PackOptions::default());
    assert_eq!(
        (report.encoding, report.tally.reencoded),
        (Encoding::Mixed, 1)
    );
    assert_eq!(report.tally.formats["webp"], golden().len());
    let frame = pack.bytes(1).unwrap();
    assert_eq!(pack.name(1), Some("animated.webp"));
    assert!(frame.starts_with(b"\x89PNG"));
    let first = Image::decode(&file("animated.webp")).unwrap();
    assert_eq!(pack.decode(1).unwrap(), first);
    let expected = [("png", 1), ("webp", golden().len() - 1)];
    assert_eq!(
        verified(&pack),
        expected.map(|(name, count)| (name.to_owned(), count))
    );
}

#[test]
fn reencode_is_for_webp_too() {
    for (reencode, encoding, tolerance) in [
        (Reencode::Png, Encoding::Png, 0),
        (Reencode::Jpeg, Encoding::Jpeg, 24),
    ] {
        let options = PackOptions {
            reencode: Some(reencode),
            ..PackOptions::default()
        };
        let (_dir, _, report, pack) = packed(&golden(), &options);
        assert_eq!(
            (report.encoding, report.tally.reencoded),
            (encoding, golden().len())
        );
        assert_eq!(report.tally.formats["webp"], golden().len());
        let smooth = golden()
            .iter()
            .position(|(name, _)| name == "orientation.webp");
        let (index, upright) = (smooth.unwrap(), file("orientation.webp"));
        let (found, wanted) = (
            pack.decode(index).unwrap(),
            Image::decode(&upright).unwrap(),
        );
        assert_eq!((found.width, found.height), (wanted.width, wanted.height));
        let pairs = found.pixels.iter().zip(&wanted.pixels);
        assert!(pairs.map(|(a, b)| a.abs_diff(*b)).max() <= Some(tolerance));
    }
}

#[test]
fn what_shrinks_is_encoded_anew_and_all_else_stays() {
    let small = webp(&picture(20, 10));
    let files = [
        ("a.webp".to_owned(), small.clone()),
        ("b.webp".to_owned(), webp(&picture(40, 30))),
    ];
    for (reencode, encodings) in [
        (None, [Encoding::WebP, Encoding::Png]),
        (Some(Reencode::Png), [Encoding::Png, Encoding::Png]),
        (Some(Reencode::Jpeg), [Encoding::Jpeg, Encoding::Jpeg]),
    ] {
        let options = PackOptions {
            resize_shorter: Some(15),
            // Of JPEGs alone.
            quality: Some(95),
            reencode,
            ..PackOptions::default()
        };
        let (_dir, _, report, pack) = packed(&files, &options);
        assert_eq!(report.tally.sizes, Some([20, 20, 10, 15]));
        let starts = encodings.map(|encoding| match encoding {
            Encoding::WebP => &b"RIFF"[..],
            Encoding::Png => b"\x89PNG",
            _ => b"\xFF\xD8",
        });
        for (index, start) in starts.into_iter().enumerate() {
            assert!(
                pack.bytes(index).unwrap().starts_with(start),
                "{reencode:?} {index}"
            );
        }
        if reencode.is_none() {
            assert_eq!(pack.bytes(0), Some(&*small));
        }
    }
}

#[test]
fn other_channels_are_planes_and_a_range_is_for_more_bits() {
    let files = [
        "alpha.webp",
        "lossless.webp",
        "lossy-alpha.webp",
        "lossy.webp",
    ];
    let files = files.map(|name| (name.to_owned(), file(name)));
    let with = |channels, depth| {
        let options = PackOptions {
            channels,
            depth,
            ..PackOptions::default()
        };
        packed(&files, &options)
    };
    for (channels, count) in [(1, 4), (4, 2)] {
        let (_dir, _, report, pack) = with(channels, Depth::Upper);
        assert_eq!((report.packed, report.skipped.len()), (count, 4 - count));
        let expected = channels as u32;
        assert_eq!(pack.encoding(), Encoding::Planes { channels: expected });
        let found = pack.decode(0).unwrap();
        let wanted = Image::decode_channels(&file("alpha.webp"), channels, Depth::Upper).unwrap();
        assert_eq!((found.channels, found), (channels, wanted));
    }
    let range = Depth::Range {
        least: 0.0,
        most: 100.0,
    };
    let (_dir, _, report, pack) = with(3, range);
    assert_eq!((report.encoding, report.notes.len()), (Encoding::WebP, 0));
    assert_eq!(pack.bytes(3), Some(&*file("lossy.webp")));
}

/// A file whose pixels are not those that its header says, and what is wrong with it.
fn lies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let edited = |name: &str, at: usize, with: &[u8]| {
        let mut bytes = file(name);
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let canvas = "its header says 12289 x 13 pixels, and it has 21 x 13";
    let pixels = "its header says 21 x 13 pixels, and it has 16383 x 16383";
    let huge = "too large";
    // The sides of the canvas, less one, begin at byte 24, those of the pixels behind it at byte 39 (lossless) or 44
    // (lossy), and without metadata at byte 26.
    vec![
        ("canvas.webp", edited("xmp.webp", 24, &[0, 0x30, 0]), canvas),
        (
            "canvas of lossy.webp",
            edited("lossy-exif.webp", 24, &[0, 0x30, 0]),
            canvas,
        ),
        ("huge canvas.webp", edited("xmp.webp", 24, &[0xFF; 6]), huge),
        (
            "pixels.webp",
            edited("xmp.webp", 39, &[0xFE, 0xBF, 0xFF, 0x0F]),
            pixels,
        ),
        (
            "lossy pixels.webp",
            edited("lossy-exif.webp", 44, &[0xFF, 0x3F, 0xFF, 0x3F]),
            pixels,
        ),
        (
            "too many.webp",
            edited("lossy.webp", 26, &[0xFF, 0x3F, 0xFF, 0x3F]),
            "16383 x 16383 pixels",
        ),
        (
            "too few.webp",
            edited("lossy.webp", 26, &[0xFF, 0, 0xFF, 0]),
            "",
        ),
        ("no pixels.webp", edited("lossy.webp", 26, &[0, 0]), ""),
    ]
}

#[test]
fn what_is_cut_damaged_or_lies_is_left_out_by_name() {
    let whole = file("lossy-wide.webp");
    let mut files: Vec<(String, Vec<u8>)> = lies()
        .into_iter()
        .map(|(name, bytes, _)| (name.to_owned(), bytes))
        .collect();
    let mut expected: Vec<(String, &str)> = lies()
        .into_iter()
        .map(|(name, _, reason)| (name.to_owned(), reason))
        .collect();
    for missing in [1, 2, 7, 100, whole.len() / 2, whole.len() - 16] {
        let name = format!("cut {missing:04}.webp");
        files.push((name.clone(), whole[..whole.len() - missing].to_vec()));
        expected.push((name, "truncated"));
    }
    // Cut, with lengths that hide it.
    for part in [2, 4] {
        let mut bytes = whole[..whole.len() / part / 2 * 2].to_vec();
        let riff = bytes.len() as u32 - 8;
        bytes[4..8].copy_from_slice(&riff.to_le_bytes());
        bytes[16..20].copy_from_slice(&(riff - 12).to_le_bytes());
        let name = format!("hidden {part}.webp");
        files.push((name.clone(), bytes));
        expected.push((name, ""));
    }
    files.push(("whole.webp".to_owned(), whole.clone()));
    let (_dir, _, report, pack) = packed(&files, &PackOptions::default());
    assert_eq!((report.packed, pack.bytes(0)), (1, Some(&*whole)));
    expected.sort();
    let found: Vec<(&str, &str)> = report
        .skipped
        .iter()
        .map(|skipped| (&*skipped.name, &*skipped.reason))
        .collect();
    assert_eq!(found.len(), expected.len());
    for ((name, reason), (expected_name, expected_reason)) in found.iter().zip(&expected) {
        assert_eq!(name, expected_name);
        assert!(reason.contains(expected_reason), "{name}: {reason}");
    }
}

/// Packs are files that others may have written, or the disk changed.
#[test]
fn the_loader_looks_as_closely_as_packing() {
    for (name, bytes, reason) in lies() {
        let mut source = Samples::raw(0, 0);
        // As long as the lies, and longer.
        source.samples = (0..5)
            .map(|number| {
                let mut bytes = file("xmp.webp");
                bytes.extend([number; 60]);
                (bytes, Encoding::WebP, None)
            })
            .collect();
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("set");
        write(&source, &path, &PackOptions::default());
        overwrite(&path, 2, &bytes);
        let pack = Arc::new(Pack::open(&path).unwrap());
        let error = pack.decode(2).unwrap_err().to_string();
        assert!(
            error.contains("sample 2") && error.contains(reason),
            "{name}: {error}"
        );
        let found = pack.verify(&mut |_, _| {}, &|| false).unwrap();
        assert_eq!(found.broken.len(), 1, "{name}");
        assert!(found.ensure_whole(&pack).is_err());
        let data = DataConfig {
            image_size: 8,
            ..DataConfig::default()
        };
        let view = ImageView::new(&data, &ViewConfig::default()).unwrap();
        let config = LoaderConfig {
            batch_size: 2,
            workers: 1,
            on_corrupt: OnCorrupt::Skip,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(pack, view, None, config).unwrap();
        for epoch in 0..3 {
            for batch in loader.epoch(epoch, 0).unwrap() {
                let batch = batch.unwrap();
                assert!(
                    batch.indices.len() == 2 && !batch.indices.contains(&2),
                    "{name}"
                );
            }
        }
    }
}
