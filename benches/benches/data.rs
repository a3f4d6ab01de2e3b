//! Images per second of the loader in both shapes, and the cost of each transform.
//!
//! `cargo bench -p benches --bench data`; divide the loader's rate by its threads for the rate of
//! one core.

use std::borrow::Cow;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pirl_data::transform::{self, Crop, Resizer};
use pirl_data::{
    DataConfig, DataError, Encoding, Image, ImageView, Loader, LoaderConfig, Pack, PackOptions,
    PretextConfig, RawSample, Source, ViewConfig, build_pretext, pack,
};

/// The same images again and again: what a loader does does not depend on their variety.
struct Made {
    images: Vec<Vec<u8>>,
    encoding: Encoding,
    count: usize,
}

impl Source for Made {
    fn len(&self) -> usize {
        self.count
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        Ok(RawSample {
            name: format!("sample {index}"),
            bytes: Cow::Borrowed(&self.images[index % self.images.len()]),
            encoding: self.encoding,
            label: None,
            objects: None,
        })
    }

    fn describe(&self) -> String {
        "made for a bench".into()
    }
}

/// A picture with slopes and some noise, which is as hard to decode as a photograph.
fn picture(seed: u32, width: usize, height: usize) -> Image {
    let noise = benches::fill(seed, width * height * 3);
    let pixels = noise.iter().enumerate().map(|(i, noise)| {
        let (x, y, channel) = (i / 3 % width, i / 3 / width, i % 3);
        let slope = ((x * (channel + 1) + y * 2) % 200) as f32;
        (slope + 25.0 + noise * 20.0) as u8
    });
    Image::new(width, height, pixels.collect()).expect("a full image")
}

/// An image as a JPEG of quality 90.
fn jpeg(picture: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (width, height) = (picture.width as u32, picture.height as u32);
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode(
            &picture.pixels,
            width,
            height,
            image::ExtendedColorType::Rgb8,
        )
        .expect("an image encodes");
    bytes
}

fn packed(folder: &Path, name: &str, source: &Made) -> Arc<Pack> {
    let path = folder.join(name);
    pack(source, &path, &PackOptions::default(), &mut |_, _| {}).expect("a pack");
    Arc::new(Pack::open(&path).expect("the pack"))
}

fn epochs(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = Made {
        images: (0..64)
            .map(|seed| {
                picture(seed, 28, 28)
                    .pixels
                    .iter()
                    .step_by(3)
                    .copied()
                    .collect()
            })
            .collect(),
        encoding: Encoding::Raw {
            height: 28,
            width: 28,
            channels: 1,
        },
        count: 2048,
    };
    let photographs = Made {
        images: (0..16).map(|seed| jpeg(&picture(seed, 500, 375))).collect(),
        encoding: Encoding::Jpeg,
        count: 64,
    };
    let small = DataConfig {
        image_size: 28,
        patch_size: 12,
        ..DataConfig::default()
    };
    let mut group = c.benchmark_group("loader");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for (name, source, data, crop_size, batch_size) in [
        ("28 and 9 x 12 of raw 28 x 28", tiny, small, 36, 128),
        (
            "224 and 9 x 64 of JPEG 500 x 375",
            photographs,
            DataConfig::default(),
            255,
            16,
        ),
    ] {
        let pack = packed(folder.path(), &format!("{crop_size}"), &source);
        let pretext = PretextConfig {
            crop_size,
            ..PretextConfig::default()
        };
        let pretext = build_pretext(&pretext, &data, &ViewConfig::patch(), 0).expect("a task");
        let view = ImageView::new(&data, &ViewConfig::default()).expect("a view");
        let settings = LoaderConfig {
            batch_size,
            workers: 1,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(pack, view, Some(Arc::from(pretext)), settings).expect("a loader");
        group.throughput(Throughput::Elements(source.count as u64));
        let mut epoch = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                epoch += 1;
                for batch in loader.epoch(epoch, 0).expect("an epoch") {
                    black_box(batch.expect("a batch"));
                }
            });
        });
    }
    group.finish();
}

fn operations(c: &mut Criterion) {
    let mut group = c.benchmark_group("transform of 224 x 224");
    group.throughput(Throughput::Elements(1));
    group
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_secs(1));
    let image = picture(3, 224, 224);
    let mut spare = Vec::new();
    let mut bench = |name: &str, run: &mut dyn FnMut(&mut Image)| {
        let mut out = image.clone();
        group.bench_function(name, |b| {
            b.iter(|| {
                out.pixels.copy_from_slice(&image.pixels);
                run(black_box(&mut out));
            });
        });
    };
    bench("copy alone", &mut |_| {});
    bench("brightness", &mut |out| transform::brightness(out, 1.3));
    bench("contrast", &mut |out| transform::contrast(out, 1.3));
    bench("saturation", &mut |out| transform::saturation(out, 1.3));
    bench("hue", &mut |out| transform::hue(out, 0.1));
    bench("grayscale", &mut transform::grayscale);
    bench("posterize", &mut |out| transform::posterize(out, 5));
    bench("sharpness", &mut |out| {
        transform::sharpness(out, 1.7, &mut spare)
    });
    bench("solarize", &mut |out| transform::solarize(out, 128));
    bench("autocontrast", &mut transform::autocontrast);
    bench("blur of radius 2", &mut |out| {
        transform::gaussian_blur(out, 2.0, &mut spare)
    });
    bench("flip", &mut transform::flip);
    let photograph = picture(4, 500, 375);
    let mut resizer = Resizer::default();
    let crop = Crop {
        left: 50,
        top: 20,
        width: 350,
        height: 300,
    };
    bench("resize from 350 x 300", &mut |out| {
        transform::resize(&mut resizer, &photograph, crop, 224, 224, out).expect("a crop inside");
    });
    group.finish();
}

criterion_group!(benches, epochs, operations);
criterion_main!(benches);
