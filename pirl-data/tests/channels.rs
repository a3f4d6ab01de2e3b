//! Images of other numbers of channels than three, and of more than 8 bits, from the file to the batch.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Samples, jpeg, picture, write};
use pirl_data::{
    DataConfig, DataError, Encoding, EvalView, Image, ImageFolder, ImageStatistics, ImageView,
    Loader, LoaderConfig, Pack, PackOptions, PackReport, PretextConfig, PretextKind, Reencode,
    ViewConfig, build_pretext, eval_batches, pack, transform,
};
use serde::Deserialize;
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/channels");
    golden.join(name)
}

/// Packs one file.
fn packed(file: &Path, options: &PackOptions) -> Result<(Pack, PackReport, TempDir), DataError> {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("images");
    fs::create_dir(&folder).unwrap();
    fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
    let source = ImageFolder::open(&folder)?;
    let report = pack(&source, &dir.path().join("set"), options, &mut |_, _| {})?;
    Ok((Pack::open(dir.path().join("set"))?, report, dir))
}

#[test]
fn every_file_is_packed_as_numpy_reads_it() {
    #[derive(Deserialize)]
    struct Case {
        file: String,
        channels: usize,
        range: String,
        expected: Option<Expected>,
    }
    #[derive(Deserialize)]
    struct Expected {
        width: usize,
        height: usize,
        pixels: String,
    }
    let cases = fs::read_to_string(golden("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let about = format!("{} {} {}", case.file, case.channels, case.range);
        let options = PackOptions {
            channels: case.channels,
            depth: case.range.parse().unwrap(),
            ..PackOptions::default()
        };
        let found = packed(&golden(&case.file), &options);
        let Some(expected) = case.expected else {
            let error = found.err().unwrap().to_string();
            let said = ["channels", "--range", "pages"];
            assert!(
                said.iter().any(|word| error.contains(word)),
                "{about}: {error}"
            );
            continue;
        };
        let (pack, report, _dir) = found.unwrap_or_else(|error| panic!("{about}: {error}"));
        let bytes = expected.pixels.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let expected = Image::with_channels(
            expected.width,
            expected.height,
            case.channels,
            bytes.map(byte).collect(),
        );
        assert_eq!(pack.decode(0).unwrap(), expected.unwrap(), "{about}");
        assert_eq!(pack.channels(), case.channels, "{about}");
        // What was lost is said.
        let deep = report
            .notes
            .iter()
            .any(|note| note.reason.contains("became 8"));
        assert_eq!(
            deep,
            !case.file.contains("bands-5")
                && !case.file.contains("alpha")
                && !case.file.ends_with("grey.png")
                && !case.file.ends_with("rgb.png")
                && !case.file.ends_with("rgba.png"),
            "{about}: {:?}",
            report.notes
        );
    }
}

/// Images of five channels, every value another.
fn bands(index: usize) -> Image {
    let (width, height) = (20 + index % 3, 30 - index % 4);
    let values = benches::fill(index as u32 + 1, width * height * 5);
    let bytes = values.iter().map(|value| (value * 128.0 + 128.0) as u8);
    Image::with_channels(width, height, 5, bytes.collect()).unwrap()
}

/// A TIFF file of 8-bit bands, uncompressed.
fn tiff(image: &Image) -> Vec<u8> {
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    let entries: [(u16, u16, usize); 9] = [
        (256, 4, image.width),
        (257, 4, image.height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, image.channels),
        (278, 4, image.height),
        (279, 4, image.pixels.len()),
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend((value as u32).to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(&image.pixels);
    bytes
}

/// A pack of twelve images of five channels in two classes.
fn five(dir: &Path, options: &PackOptions) -> Pack {
    let folder = dir.join("images");
    for index in 0..12 {
        let class = folder.join(["field", "water"][index % 2]);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{index:02}.tif")), tiff(&bands(index))).unwrap();
    }
    write(
        &ImageFolder::open(&folder).unwrap(),
        &dir.join("set"),
        options,
    );
    Pack::open(dir.join("set")).unwrap()
}

fn of_five() -> PackOptions {
    PackOptions {
        channels: 5,
        ..PackOptions::default()
    }
}

#[test]
fn bands_are_packed_without_loss_as_a_picture_that_anyone_can_open() {
    let dir = TempDir::new().unwrap();
    let pack = five(dir.path(), &of_five());
    assert_eq!(pack.encoding(), Encoding::Planes { channels: 5 });
    assert_eq!((pack.len(), pack.channels()), (12, 5));
    // In order of their paths: field, then water.
    for (place, index) in (0..12).step_by(2).chain((1..12).step_by(2)).enumerate() {
        let expected = bands(index);
        assert_eq!(pack.decode(place).unwrap(), expected);
        let size = (expected.width, expected.height);
        assert_eq!(pack.image_size(place).unwrap(), size);
        let shown = image::load_from_memory(pack.bytes(place).unwrap()).unwrap();
        assert_eq!(shown.color(), image::ColorType::L8);
        assert_eq!(shown.height() as usize, 5 * expected.height);
        let third = &shown.as_bytes()[2 * size.0 * size.1..][..size.0 * size.1];
        let channel: Vec<u8> = expected.pixels.iter().skip(2).step_by(5).copied().collect();
        assert_eq!(third, channel);
    }
    let verified = pack.verify(&mut |_, _| {}, &|| false).unwrap();
    assert!(verified.broken.is_empty());
    assert_eq!(verified.fingerprint, pack.fingerprint());
    let statistics = ImageStatistics::of(&pack, 0, &mut |_, _| {}, &|| false).unwrap();
    assert_eq!((statistics.mean.len(), statistics.gray), (5, false));
    let lines = statistics.to_toml();
    assert!(
        lines.starts_with("[data]\nchannels = 5\nmean = ["),
        "{lines}"
    );
}

#[test]
fn bands_shrink_each_on_its_own() {
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        resize_shorter: Some(12),
        ..of_five()
    };
    let pack = five(dir.path(), &options);
    let (small, whole) = (pack.decode(0).unwrap(), bands(0));
    assert_eq!((small.width, small.height), (12, 18));
    for channel in 0..5 {
        let one = only(&whole, &[channel]);
        let mut out = Image::new(1, 1, vec![0; 3]).unwrap();
        let crop = transform::Crop::whole(&one);
        let mut resizer = transform::Resizer::default();
        transform::resize(&mut resizer, &one, crop, 12, 18, &mut out).unwrap();
        assert_eq!(only(&small, &[channel]), out);
    }
}

#[test]
fn what_has_other_channels_is_left_out_by_name() {
    let dir = TempDir::new().unwrap();
    five(dir.path(), &of_five());
    let folder = dir.path().join("images");
    fs::write(folder.join("water/photo.jpg"), jpeg(&picture(30, 20))).unwrap();
    let source = ImageFolder::open(&folder).unwrap();
    let report = write(&source, &dir.path().join("again"), &of_five());
    assert_eq!((report.packed, report.skipped.len()), (12, 1));
    let left_out = &report.skipped[0];
    assert_eq!(left_out.name, "water/photo.jpg");
    assert!(
        left_out
            .reason
            .contains("it has 3 channels, asked for are 5"),
        "{left_out:?}"
    );
    // Without the option the other way round, with the way out.
    let report = write(&source, &dir.path().join("rgb"), &PackOptions::default());
    assert_eq!((report.packed, report.skipped.len()), (1, 12));
    assert!(
        report.skipped[0].reason.contains("--channels 5"),
        "{:?}",
        report.skipped[0]
    );

    for options in [
        PackOptions {
            quality: Some(90),
            ..of_five()
        },
        PackOptions {
            reencode: Some(Reencode::Jpeg),
            ..of_five()
        },
        PackOptions {
            channels: 0,
            ..of_five()
        },
        PackOptions {
            channels: 17,
            ..of_five()
        },
    ] {
        assert!(
            matches!(options.check(), Err(error) if error.to_string().starts_with("channels = "))
        );
    }
}

#[test]
fn colours_become_grey_and_grey_stays_what_it_is() {
    let grey = |options: &PackOptions, source: &Samples| {
        let dir = TempDir::new().unwrap();
        write(source, &dir.path().join("set"), options);
        Pack::open(dir.path().join("set"))
            .unwrap()
            .decode(0)
            .unwrap()
    };
    let one = PackOptions {
        channels: 1,
        ..PackOptions::default()
    };
    let raw = Samples::raw(1, 0);
    let found = grey(&one, &raw);
    assert_eq!((found.channels, &found.pixels), (1, &raw.samples[0].0));
    // A photograph: the luma of what it is in RGB.
    let mut photo = Samples::raw(0, 0);
    photo.samples = vec![(jpeg(&picture(30, 20)), Encoding::Jpeg, None)];
    let found = grey(&one, &photo);
    let mut rgb = grey(&PackOptions::default(), &photo);
    transform::grayscale(&mut rgb);
    assert_eq!(found, only(&rgb, &[0]));
}

/// Some channels of an image.
fn only(image: &Image, channels: &[usize]) -> Image {
    let pixels = image.pixels.chunks_exact(image.channels);
    let chosen = pixels.flat_map(|pixel| channels.iter().map(|channel| pixel[*channel]));
    Image::with_channels(image.width, image.height, channels.len(), chosen.collect()).unwrap()
}

/// Every operation treats five channels as it treats three of them.
#[test]
fn channels_are_transformed_as_those_of_rgb() {
    type Operation = (&'static str, fn(&mut Image));
    let operations: [Operation; 9] = [
        ("brightness", |image| transform::brightness(image, 1.3)),
        ("posterize", |image| transform::posterize(image, 5)),
        ("solarize", |image| transform::solarize(image, 100)),
        ("autocontrast", transform::autocontrast),
        ("sharpness", |image| {
            transform::sharpness(image, 1.7, &mut Vec::new())
        }),
        ("blur", |image| {
            transform::gaussian_blur(image, 1.4, &mut Vec::new())
        }),
        ("flip", transform::flip),
        ("turn", |image| {
            transform::quarter_turns(&image.clone(), 1, image)
        }),
        ("resize", |image| {
            let crop = transform::Crop {
                left: 3,
                top: 2,
                width: 14,
                height: 11,
            };
            let whole = image.clone();
            transform::resize(
                &mut transform::Resizer::default(),
                &whole,
                crop,
                9,
                8,
                image,
            )
            .unwrap();
        }),
    ];
    for (name, operation) in operations {
        let five = bands(1);
        for some in [&[0, 1, 2][..], &[4, 3, 2], &[1], &[2, 0], &[3, 1, 0, 4]] {
            let (mut whole, mut part) = (five.clone(), only(&five, some));
            operation(&mut whole);
            operation(&mut part);
            assert_eq!(only(&whole, some), part, "{name} {some:?}");
        }
    }
    // What is of colour alone leaves other channels as they are; it does change colours.
    let of_color: [Operation; 3] = [
        ("hue", |image| transform::hue(image, 0.3)),
        ("saturation", |image| transform::saturation(image, 0.2)),
        ("grayscale", transform::grayscale),
    ];
    for (name, operation) in of_color {
        for some in [&[0][..], &[0, 1], &[0, 1, 2, 3], &[0, 1, 2, 3, 4]] {
            let before = only(&bands(2), some);
            let mut after = before.clone();
            operation(&mut after);
            assert_eq!(before, after, "{name}");
        }
        let mut colors = only(&bands(2), &[0, 1, 2]);
        operation(&mut colors);
        assert_ne!(colors, only(&bands(2), &[0, 1, 2]), "{name}");
    }
    // Away from the mean of all values: 10, 20, 60, 110 and 50 have 50.
    let mut image = Image::with_channels(1, 1, 5, vec![10, 20, 60, 110, 50]).unwrap();
    transform::contrast(&mut image, 0.5);
    assert_eq!(image.pixels, [30, 35, 55, 80, 50]);
}

fn settings(channels: usize) -> DataConfig {
    DataConfig {
        image_size: 16,
        patch_size: 5,
        channels,
        mean: vec![0.5; channels],
        std: vec![0.25; channels],
        ..DataConfig::default()
    }
}

#[test]
fn batches_have_the_channels_whatever_the_number_of_workers() {
    let dir = TempDir::new().unwrap();
    let pack = Arc::new(five(dir.path(), &of_five()));
    for kind in [
        PretextKind::Jigsaw,
        PretextKind::Rotation,
        PretextKind::JigsawRotation,
    ] {
        let batch = |workers: usize| {
            let pretext = PretextConfig {
                kind,
                crop_size: 18,
                ..PretextConfig::default()
            };
            let views = ViewConfig {
                blur_probability: 0.5,
                ..ViewConfig::patch()
            };
            let pretext = build_pretext(&pretext, &settings(5), &views, 3).unwrap();
            let view = ImageView::new(&settings(5), &views).unwrap();
            let config = LoaderConfig {
                batch_size: 4,
                workers,
                ..LoaderConfig::default()
            };
            let loader = Loader::new(pack.clone(), view, Some(Arc::from(pretext)), config).unwrap();
            let batch = loader.epoch(1, 0).unwrap().next().unwrap().unwrap();
            let bytes = |tensor: &candle_core::Tensor| {
                (
                    tensor.dims().to_vec(),
                    tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap(),
                )
            };
            (
                bytes(&batch.images),
                bytes(batch.transformed.as_ref().unwrap()),
            )
        };
        let (images, views) = batch(1);
        assert_eq!(images.0, [4, 5, 16, 16]);
        let shape = match kind {
            PretextKind::Rotation => vec![4, 5, 16, 16],
            _ => vec![36, 5, 5, 5],
        };
        assert_eq!(views.0, shape);
        assert_eq!((images, views), batch(4));
    }
    let view = EvalView {
        resize: 18,
        crop: 16,
        stretch: false,
        mean: vec![0.5; 5],
        std: vec![0.25; 5],
    };
    let device = candle_core::Device::Cpu;
    let (images, _) = eval_batches(&pack, &view, 8, 1, &device)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(images.dims(), [8, 5, 16, 16]);
}

#[test]
fn settings_of_other_channels_are_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    let pack = Arc::new(five(dir.path(), &of_five()));
    let view = ImageView::new(&settings(3), &ViewConfig::default()).unwrap();
    let config = LoaderConfig {
        batch_size: 4,
        ..LoaderConfig::default()
    };
    let refused = Loader::new(pack.clone(), view.clone(), None, config)
        .err()
        .unwrap();
    let said = refused.to_string();
    assert!(
        said.contains("have 5 channels") && said.contains("pirl data stats"),
        "{said}"
    );
    let image = pack.decode(0).unwrap();
    let mut out = vec![0; 3 * 256];
    let mut scratch = pirl_data::Scratch::default();
    let mut rng = pirl_data::sample_rng(0, 0, 0);
    let refused = view.apply(&image, &mut rng, &mut scratch, &mut out);
    assert!(matches!(
        refused,
        Err(DataError::Channels {
            expected: 3,
            found: 5
        })
    ));
    let uneven = DataConfig {
        mean: vec![0.5; 3],
        ..settings(5)
    };
    let said = uneven.check().unwrap_err().to_string();
    assert!(
        said.contains("mean = [0.5, 0.5, 0.5]: must be 5 numbers"),
        "{said}"
    );
}
