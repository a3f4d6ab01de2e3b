//! Large JPEGs on their way into a pack of small images: the same pixels, in a fraction of the memory.

mod common;

use common::{Samples, write};
use jpeg_encoder::{Encoder, ImageBuffer, JpegColorType};
use pirl_data::transform::{Crop, Resizer, resize};
use pirl_data::{Encoding, Image, Pack, PackOptions};

#[global_allocator]
static ALLOCATOR: benches::Counting = benches::Counting;

const WIDTH: u16 = 8_003;
const HEIGHT: u16 = 6_001;

/// A photograph of 48 million pixels that never is in memory: waves, and edges.
struct Photograph;

impl ImageBuffer for Photograph {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        WIDTH
    }

    fn height(&self) -> u16 {
        HEIGHT
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let wave = |at: u16, length: f32| (f32::from(at) / length).sin() * 50.0;
        let row = wave(y, 300.0);
        for x in 0..WIDTH {
            let edge = if (x / 640 + y / 480).is_multiple_of(2) {
                40.0
            } else {
                0.0
            };
            buffers[0].push((100.0 + row + wave(x, 170.0) + edge) as u8);
            buffers[1].push((128.0 + wave(x, 1_100.0)) as u8);
            buffers[2].push((128.0 + row) as u8);
        }
    }
}

/// Exif data that say so.
fn exif(orientation: u8) -> Vec<u8> {
    let header = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    [&header[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat()
}

// One test, for the memory is counted for the whole process.
#[test]
fn a_large_photograph_is_packed_small_in_a_fraction_of_its_memory() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.add_app_segment(1, exif(6)).unwrap();
    encoder.encode_image(Photograph).unwrap();
    let whole = Image::decode(&bytes).unwrap();
    assert_eq!((whole.width, whole.height), (6_001, 8_003));
    let source = Samples {
        samples: vec![(bytes, Encoding::Jpeg, None)],
        ..Samples::raw(0, 0)
    };
    let dir = tempfile::TempDir::new().unwrap();
    let pack = |side| {
        let options = PackOptions {
            resize_shorter: Some(side),
            ..PackOptions::default()
        };
        let output = dir.path().join("one");
        let (report, taken) = benches::peak_of(|| write(&source, &output, &options));
        assert_eq!(report.packed, 1);
        (Pack::open(output).unwrap().decode(0).unwrap(), taken)
    };
    let pixels = usize::from(WIDTH) * usize::from(HEIGHT);
    // What is asked for is more than half of it: three bytes a pixel.
    let (_, most) = pack(3_001);
    assert!(most > 3 * pixels, "{most} bytes");
    for (side, fraction) in [(256, 10), (750, 4), (1_500, 2)] {
        let (found, taken) = pack(side);
        let (wide, high) = (side as usize, 8_003 * side as usize / 6_001);
        assert_eq!((found.width, found.height), (wide, high));
        let mut wanted = Image::new(1, 1, vec![0; 3]).unwrap();
        let crop = Crop {
            left: 0,
            top: 0,
            width: whole.width,
            height: whole.height,
        };
        resize(
            &mut Resizer::default(),
            &whole,
            crop,
            wide,
            high,
            &mut wanted,
        )
        .unwrap();
        let apart = found.pixels.iter().zip(&wanted.pixels);
        let sum: f64 = apart.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        let mean = sum / wanted.pixels.len() as f64;
        eprintln!("{side}: {taken} bytes of {most}, {mean:.3} apart on average");
        assert!(taken < most / fraction, "{side}: {taken} of {most} bytes");
        // Of which encoding it again has a part.
        assert!(mean < 1.0, "{side}: {mean}");
    }
}
