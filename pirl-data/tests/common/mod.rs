//! Pictures and sources made up for the tests.
#![allow(dead_code)] // each test file uses a part

use std::borrow::Cow;
use std::path::Path;

use image::ImageEncoder;
use pirl_data::{
    DataError, Encoding, Image, Objects, PackOptions, PackReport, RawSample, Source, pack,
};

/// Smooth and different in every channel, so that JPEG keeps it nearly as it is.
pub(crate) fn picture(width: usize, height: usize) -> Image {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend([
                (255 * x / width) as u8,
                (255 * y / height) as u8,
                (255 * (x + y) / (width + height)) as u8,
            ]);
        }
    }
    Image::new(width, height, pixels).unwrap()
}

fn encode(image: &Image, encoder: impl ImageEncoder) {
    let (width, height) = (image.width as u32, image.height as u32);
    let color = image::ExtendedColorType::Rgb8;
    let written = encoder.write_image(&image.pixels, width, height, color);
    written.unwrap();
}

pub(crate) fn jpeg(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
    encode(image, encoder);
    bytes
}

pub(crate) fn png(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(image, image::codecs::png::PngEncoder::new(&mut bytes));
    bytes
}

/// Lossless.
pub(crate) fn webp(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
    encode(image, encoder);
    bytes
}

/// Overwrites sample `index` in the file of a pack that is one shard; what is longer is cut, what is shorter
/// followed by zeros.
pub(crate) fn overwrite(path: &Path, index: usize, with: &[u8]) {
    let (file, at, length) = {
        let pack = pirl_data::Pack::open(path).unwrap();
        let file = pack.paths()[0].clone();
        let bytes = std::fs::read(&file).unwrap();
        let sample = pack.bytes(index).unwrap();
        let mut windows = bytes.windows(sample.len());
        let at = windows.position(|window| window == sample).unwrap();
        (file, at, sample.len())
    };
    let mut bytes = std::fs::read(&file).unwrap();
    let mut record = with.to_vec();
    record.resize(length, 0);
    bytes[at..at + length].copy_from_slice(&record);
    std::fs::write(&file, bytes).unwrap();
}

/// JPEG and PNG files of all sizes, some broken, in two classes.
pub(crate) fn mixed_folder() -> tempfile::TempDir {
    let images = tempfile::TempDir::new().unwrap();
    for class in ["a", "b"] {
        std::fs::create_dir(images.path().join(class)).unwrap();
        for index in 0..30 {
            let image = picture(20 + index * 3, 60 - index);
            let bytes = match index % 7 {
                0 => png(&image),
                3 => b"no image".to_vec(),
                _ => jpeg(&image),
            };
            let name = format!("{class}/{index:02}.jpg");
            std::fs::write(images.path().join(name), bytes).unwrap();
        }
    }
    images
}

/// Packs what can be packed.
pub(crate) fn write(source: &dyn Source, output: &Path, options: &PackOptions) -> PackReport {
    pack(source, output, options, &mut |_, _| {}).expect("packs")
}

/// The names in a folder, sorted.
pub(crate) fn list_dir(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A source held in memory: bytes, encoding, label.
pub(crate) struct Samples {
    pub(crate) samples: Vec<(Vec<u8>, Encoding, Option<u32>)>,
    pub(crate) class_names: Vec<String>,
    /// Those of each sample, which then has no label.
    pub(crate) objects: Option<Vec<Objects>>,
    /// The number in the name of sample 0.
    pub(crate) first: usize,
}

impl Samples {
    /// `count` different grey images of 2 x 2, labelled `index % classes` unless `classes` is 0.
    pub(crate) fn raw(count: usize, classes: u32) -> Self {
        let encoding = Encoding::Raw {
            height: 2,
            width: 2,
            channels: 1,
        };
        let sample = |index: usize| {
            let label = (classes > 0).then(|| index as u32 % classes);
            ((index as u32 + 1).to_le_bytes().to_vec(), encoding, label)
        };
        Self {
            samples: (0..count).map(sample).collect(),
            class_names: (0..classes).map(|class| format!("class {class}")).collect(),
            objects: None,
            first: 0,
        }
    }
}

impl Source for Samples {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let (bytes, encoding, label) = &self.samples[index];
        Ok(RawSample {
            name: format!("sample {}", self.first + index),
            bytes: Cow::Borrowed(bytes),
            encoding: *encoding,
            label: *label,
            objects: self.objects.as_ref().map(|objects| objects[index].clone()),
        })
    }

    fn describe(&self) -> String {
        "made up".to_owned()
    }
}
