//! Images made smaller or encoded again on their way into a pack.

mod common;

use std::fs;
use std::path::Path;

use common::{jpeg, list_dir, picture, png, write};
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use pirl_data::transform::{Crop, Resizer, resize};
use pirl_data::{Image, ImageFolder, Pack, PackOptions, Reencode, pack};
use tempfile::TempDir;

#[test]
fn quality_encodes_every_jpeg_again() {
    let images = TempDir::new().unwrap();
    let (photo, drawing) = (jpeg(&picture(64, 48)), png(&picture(64, 48)));
    fs::write(images.path().join("a.jpg"), &photo).unwrap();
    fs::write(images.path().join("b.png"), &drawing).unwrap();
    let source = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let with = |quality| {
        let options = PackOptions {
            quality,
            ..PackOptions::default()
        };
        write(&source, &dir.path().join("set"), &options);
        Pack::open(dir.path().join("set")).unwrap()
    };
    assert_eq!(with(None).bytes(0), Some(&*photo));
    let (low, high) = (with(Some(20)), with(Some(90)));
    assert!(low.bytes(0).unwrap().len() < high.bytes(0).unwrap().len());
    assert_eq!(low.bytes(1), Some(&*drawing));
    let (found, wanted) = (high.decode(0).unwrap(), picture(64, 48));
    let differences = found.pixels.iter().zip(&wanted.pixels);
    assert!(differences.map(|(a, b)| a.abs_diff(*b)).max() < Some(25));
    let wrong = PackOptions {
        quality: Some(0),
        ..PackOptions::default()
    };
    let output = dir.path().join("wrong");
    assert!(pack(&source, &output, &wrong, &mut |_, _| {}).is_err());
}

#[test]
fn colours_at_half_the_resolution_are_averages() {
    // Red and blue columns in turn: of every other column alone, all would be red.
    let columns = (0..64 * 64).flat_map(|at| {
        if at % 2 == 0 {
            [200, 0, 0]
        } else {
            [0, 0, 200]
        }
    });
    let stripes = Image::new(64, 64, columns.collect()).unwrap();
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), jpeg(&stripes)).unwrap();
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        quality: Some(100),
        ..PackOptions::default()
    };
    let source = ImageFolder::open(images.path()).unwrap();
    write(&source, &dir.path().join("set"), &options);
    let found = Pack::open(dir.path().join("set"))
        .unwrap()
        .decode(0)
        .unwrap();
    for channel in [0, 2] {
        let values = found.pixels.iter().skip(channel).step_by(3);
        let mean = values.map(|value| f64::from(*value)).sum::<f64>() / 4096.0;
        assert!((85.0..115.0).contains(&mean), "{channel}: {mean}");
    }
}

/// What JPEG quality 95 makes of a picture of another format.
fn jpeg_of(image: &Image) -> Vec<u8> {
    let images = TempDir::new().unwrap();
    let header = format!("P6\n{} {}\n255\n", image.width, image.height);
    let bytes = [header.as_bytes(), &image.pixels].concat();
    fs::write(images.path().join("a.ppm"), bytes).unwrap();
    let options = PackOptions {
        reencode: Some(Reencode::Jpeg),
        ..PackOptions::default()
    };
    let output = images.path().join("set");
    let source = ImageFolder::open(images.path()).unwrap();
    write(&source, &output, &options);
    Pack::open(&output).unwrap().bytes(0).unwrap().to_vec()
}

/// Every colour far from its neighbours.
fn colourful(width: usize, height: usize) -> Image {
    let pixels = (0..width * height * 3).map(|at| (at * at % 8191 % 256) as u8);
    Image::new(width, height, pixels.collect()).unwrap()
}

#[test]
fn a_jpeg_of_another_format_is_as_the_encoder_makes_it_of_rgb() {
    // Sides of whole blocks: nothing is made up beyond the edges, which may be done in several ways.
    for image in [picture(96, 64), colourful(48, 80), colourful(16, 16)] {
        let mut expected = Vec::new();
        let mut encoder = Encoder::new(&mut expected, 95);
        encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
        encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
        let (width, height) = (image.width as u16, image.height as u16);
        encoder
            .encode(&image.pixels, width, height, ColorType::Rgb)
            .unwrap();
        assert!(jpeg_of(&image) == expected, "{width} x {height}");
    }
    for (width, height) in [(1, 1), (2, 1), (1, 9), (33, 17), (50, 31), (31, 50)] {
        let image = picture(width, height);
        let found = Image::decode(&jpeg_of(&image)).unwrap();
        assert_eq!((found.width, found.height), (width, height));
        if width < 30 {
            continue; // too few pixels for colours of half the resolution
        }
        let apart = mean_difference(&luma(&found), &luma(&image));
        assert!(apart < 3.0, "{width} x {height}: {apart}");
    }
}

fn luma(image: &Image) -> Vec<f64> {
    let pixels = image.pixels.chunks(3);
    let values = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]].map(f64::from));
    values
        .map(|[red, green, blue]| 0.299 * red + 0.587 * green + 0.114 * blue)
        .collect()
}

fn mean_difference(a: &[f64], b: &[f64]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.sum::<f64>() / a.len() as f64
}

/// Every kind of JPEG of the decoder's test: sampled 4:4:4 to 4:2:0, grey, CMYK, turned by Exif.
#[test]
fn a_jpeg_made_smaller_is_the_decoded_image_made_smaller() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let images = TempDir::new().unwrap();
    let mut names = list_dir(&golden);
    names.retain(|name| name.ends_with(".jpg"));
    for name in &names {
        fs::copy(golden.join(name), images.path().join(name)).unwrap();
    }
    let source = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    for target in [None, Some(7), Some(10)] {
        let options = PackOptions {
            resize_shorter: target,
            quality: Some(98),
            ..PackOptions::default()
        };
        let report = write(&source, &dir.path().join("set"), &options);
        assert_eq!((report.packed, report.skipped.len()), (names.len(), 0));
        let packed = Pack::open(dir.path().join("set")).unwrap();
        for (index, name) in names.iter().enumerate() {
            let found = packed.decode(index).unwrap();
            let image = Image::decode(&fs::read(golden.join(name)).unwrap()).unwrap();
            let mut wanted = image.clone();
            if (found.width, found.height) != (image.width, image.height) {
                let whole = Crop {
                    left: 0,
                    top: 0,
                    width: image.width,
                    height: image.height,
                };
                let (width, height) = (found.width, found.height);
                let mut resizer = Resizer::default();
                resize(&mut resizer, &image, whole, width, height, &mut wanted).unwrap();
            }
            let shorter = image.width.min(image.height);
            let expected = target.map_or(shorter, |target| shorter.min(target as usize));
            assert_eq!(found.width.min(found.height), expected, "{name}");
            // Colours lose half their resolution, brightness and each colour's mean stay.
            let apart = mean_difference(&luma(&found), &luma(&wanted));
            assert!(apart < 3.0, "{name}, {target:?}: brightness {apart}");
            for channel in 0..3 {
                let mean = |image: &Image| {
                    let values = image.pixels.iter().skip(channel).step_by(3);
                    let sum: f64 = values.map(|value| f64::from(*value)).sum();
                    sum / (image.width * image.height) as f64
                };
                let apart = (mean(&found) - mean(&wanted)).abs();
                assert!(apart < 3.0, "{name}, {target:?}: channel {channel} {apart}");
            }
        }
    }
}

#[test]
fn resizing_shrinks_the_shorter_side_and_only_that() {
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), jpeg(&picture(90, 61))).unwrap();
    let small = png(&picture(20, 50));
    fs::write(images.path().join("b.png"), &small).unwrap();
    fs::write(images.path().join("c.png"), png(&picture(40, 80))).unwrap();
    let folder = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        resize_shorter: Some(30),
        ..PackOptions::default()
    };
    write(&folder, &dir.path().join("set"), &options);
    let packed = Pack::open(dir.path().join("set")).unwrap();
    let size = |index| {
        let image = packed.decode(index).unwrap();
        (image.width, image.height)
    };
    // torchvision: int(30 * 90 / 61) = 44.
    assert_eq!(size(0), (44, 30));
    assert_eq!(packed.bytes(1), Some(&*small), "nothing is enlarged");
    assert_eq!(size(2), (30, 60));
    let mean = |image: &pirl_data::Image| {
        image.pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / image.pixels.len() as f64
    };
    let (before, after) = (mean(&picture(40, 80)), mean(&packed.decode(2).unwrap()));
    assert!((before - after).abs() < 2.0, "{before} {after}");
}
