//! Transforms against Pillow and torchvision (`golden/make_transform.py`), and their properties.

mod common;

use candle_core::{Device, Tensor};
use pirl_data::transform::{self, Crop, RandomResizedCrop, Resizer};
use pirl_data::{DataConfig, DataError, EvalView, Image, ImageView, Scratch, ViewConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    views: Vec<View>,
    crops: Vec<Crops>,
}

#[derive(Deserialize)]
struct Case {
    op: String,
    values: Vec<f64>,
    seed: u32,
    width: usize,
    height: usize,
    low: f32,
    high: f32,
    out_width: usize,
    out_height: usize,
    pixels: String,
}

#[derive(Deserialize)]
struct View {
    seed: u32,
    width: usize,
    height: usize,
    resize: usize,
    crop: usize,
    numbers: Vec<f32>,
}

#[derive(Deserialize)]
struct Crops {
    width: usize,
    height: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
    draws: usize,
    means: Vec<f64>,
    deviations: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/transform.json")).unwrap()
}

/// The twin of `image` in `make_transform.py`.
fn noise(seed: u32, width: usize, height: usize, low: f32, high: f32) -> Image {
    let pixels = benches::fill(seed, width * height * 3)
        .into_iter()
        .enumerate()
        .map(|(i, x)| {
            let noise = x * 0.5 + 0.5;
            let slope = (i / 3 % width) as f32 / width as f32;
            (low + (noise * 0.5 + slope * 0.5) * (high - low)) as u8
        })
        .collect();
    Image::new(width, height, pixels).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn run(case: &Case) -> Image {
    let mut image = noise(case.seed, case.width, case.height, case.low, case.high);
    let value = case.values[0];
    let factor = value as f32;
    // Rooms that hold something else first.
    let mut spare = vec![77; 10];
    match case.op.as_str() {
        "brightness" => transform::brightness(&mut image, factor),
        "contrast" => transform::contrast(&mut image, factor),
        "saturation" => transform::saturation(&mut image, factor),
        "hue" => transform::hue(&mut image, factor),
        "grayscale" => transform::grayscale(&mut image),
        "posterize" => transform::posterize(&mut image, value as u32),
        "solarize" => transform::solarize(&mut image, value as u32),
        "sharpness" => transform::sharpness(&mut image, factor, &mut spare),
        "autocontrast" => transform::autocontrast(&mut image),
        "blur" => transform::gaussian_blur(&mut image, factor, &mut spare),
        "resize" => {
            let [left, top, width, height, out_width, out_height] =
                std::array::from_fn(|i| case.values[i] as usize);
            let crop = Crop {
                left,
                top,
                width,
                height,
            };
            let source = image.clone();
            let mut resizer = Resizer::default();
            transform::resize(
                &mut resizer,
                &source,
                crop,
                out_width,
                out_height,
                &mut image,
            )
            .unwrap();
        }
        other => panic!("{other} has no twin here"),
    }
    image
}

#[test]
fn operations_are_pillows() {
    let golden = golden();
    assert!(golden.cases.len() > 50);
    let mut failures = Vec::new();
    for case in &golden.cases {
        let image = run(case);
        assert_eq!(
            (image.width, image.height),
            (case.out_width, case.out_height)
        );
        let expected = bytes(&case.pixels);
        assert_eq!(image.pixels.len(), expected.len());
        let most = image
            .pixels
            .iter()
            .zip(&expected)
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        // Resizing weighs pixels in another fixed-point precision; all else follows Pillow's own
        // arithmetic, so one level is only for a compiler that rounds differently.
        let tolerance = if case.op == "resize" { 2 } else { 1 };
        if most > 0 {
            eprintln!("{} {:?}: {most} levels", case.op, case.values);
        }
        if most > tolerance {
            failures.push(format!("{} {:?}: {most} levels", case.op, case.values));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_view_of_evaluations_is_torchvisions() {
    for view in golden().views {
        let image = noise(view.seed, view.width, view.height, 0.0, 256.0);
        let eval = EvalView {
            resize: view.resize,
            crop: view.crop,
            stretch: false,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        };
        let mut out = vec![0; 3 * view.crop * view.crop];
        eval.apply(&image, &mut Scratch::default(), &mut out)
            .unwrap();
        let views = Tensor::from_vec(out, (1, 3, view.crop, view.crop), &Device::Cpu).unwrap();
        let out = eval.normalize().unwrap().apply(&views, &Device::Cpu);
        let out: Vec<f32> = out.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        // Two levels of 255 over the least deviation after a resize; four decimals without one.
        let tolerance = if view.resize == 0 {
            1e-4
        } else {
            2.01 / 255.0 / 0.224
        };
        for (i, (found, expected)) in out.iter().zip(&view.numbers).enumerate() {
            assert!(
                (found - expected).abs() <= tolerance,
                "{} x {}, {i}: {found} for {expected}",
                view.width,
                view.height
            );
        }
    }
}

#[test]
fn a_stretched_view_is_the_whole_image_in_other_proportions() {
    let image = noise(9, 40, 20, 0.0, 256.0);
    let view = EvalView {
        resize: 0,
        crop: 16,
        stretch: true,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
    };
    let mut square = image.clone();
    let whole = Crop::whole(&image);
    transform::resize(&mut Resizer::default(), &image, whole, 16, 16, &mut square).unwrap();
    let [mut found, mut expected] = [vec![0; 3 * 256], vec![0; 3 * 256]];
    let mut scratch = Scratch::default();
    view.apply(&image, &mut scratch, &mut found).unwrap();
    let cropped = EvalView {
        stretch: false,
        ..view
    };
    cropped.apply(&square, &mut scratch, &mut expected).unwrap();
    assert_eq!(found, expected);
    cropped.apply(&image, &mut scratch, &mut expected).unwrap();
    assert_ne!(found, expected);
}

#[test]
fn crops_have_torchvisions_distribution() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for golden in golden().crops {
        let crop = RandomResizedCrop {
            scale: golden.scale,
            ratio: golden.ratio,
        };
        let n = golden.draws;
        let mut columns: [Vec<f64>; 5] = Default::default();
        for _ in 0..n {
            let Crop {
                left,
                top,
                width,
                height,
            } = crop.draw(golden.width, golden.height, &mut rng);
            assert!(left + width <= golden.width && top + height <= golden.height);
            assert!(width > 0 && height > 0);
            let ratio = (width as f64 / height as f64).ln();
            let draw = [left as f64, top as f64, width as f64, height as f64, ratio];
            for (column, value) in columns.iter_mut().zip(draw) {
                column.push(value);
            }
        }
        for (i, column) in columns.iter().enumerate() {
            let mean = column.iter().sum::<f64>() / n as f64;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            let (expected, deviation) = (golden.means[i], golden.deviations[i]);
            // Both means have the error deviation / sqrt(n); the deviations, of distributions not
            // far from uniform, one below that.
            let error = 5.0 * deviation * (2.0 / n as f64).sqrt() + 1e-6;
            let place = format!("{} x {}, column {i}", golden.width, golden.height);
            assert!(
                (mean - expected).abs() < error,
                "{place}: mean {mean} for {expected}"
            );
            let found = variance.sqrt();
            assert!(
                (found - deviation).abs() < error,
                "{place}: {found} for {deviation}"
            );
        }
    }
}

#[test]
fn the_crop_that_never_fits_is_central() {
    let crop = RandomResizedCrop {
        scale: [1.0, 1.0],
        ratio: [3.0 / 4.0, 4.0 / 3.0],
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let expected = Crop {
        left: (300 - 133) / 2,
        top: 0,
        width: 133,
        height: 100,
    };
    assert_eq!(crop.draw(300, 100, &mut rng), expected);
}

#[test]
fn gray_images_stay_gray_and_skip_the_work_unseen() {
    let mut image = noise(3, 20, 20, 0.0, 256.0);
    transform::grayscale(&mut image);
    let gray = image.clone();
    transform::hue(&mut image, 0.13);
    transform::saturation(&mut image, 1.7);
    transform::grayscale(&mut image);
    assert_eq!(image, gray);
    // The same pixels beside one that has a colour take the long way, to the same result.
    let mut mixed = gray.clone();
    mixed.pixels.splice(0..3, [200, 10, 30]);
    transform::hue(&mut mixed, 0.13);
    transform::saturation(&mut mixed, 1.7);
    assert_eq!(mixed.pixels[3..], gray.pixels[3..]);
    assert_ne!(mixed.pixels[..3], [200, 10, 30]);
}

#[test]
fn four_quarters_and_two_flips_change_nothing() {
    let image = noise(4, 7, 4, 0.0, 256.0);
    let (mut a, mut b) = (image.clone(), image.clone());
    transform::quarter_turns(&image, 1, &mut a);
    assert_eq!((a.width, a.height), (4, 7));
    // Counter-clockwise: the top right corner goes to the top left.
    assert_eq!(a.pixel(0, 0), image.pixel(6, 0));
    transform::quarter_turns(&a, 1, &mut b);
    transform::quarter_turns(&image, 2, &mut a);
    assert_eq!(a, b);
    transform::quarter_turns(&a, 3, &mut b);
    transform::quarter_turns(&b, 3, &mut a);
    assert_eq!(a, image);
    transform::flip(&mut a);
    assert_eq!(a.pixel(0, 1), image.pixel(6, 1));
    transform::flip(&mut a);
    assert_eq!(a, image);
}

#[test]
fn views_of_any_image_depend_on_the_seed_alone() {
    let data = DataConfig {
        image_size: 24,
        ..DataConfig::default()
    };
    let config = ViewConfig {
        blur_probability: 0.5,
        ..ViewConfig::default()
    };
    let view = ImageView::new(&data, &config).unwrap();
    let mut scratch = Scratch::default();
    for (width, height) in [(1, 1), (1, 50), (50, 1), (3, 2), (33, 57), (640, 2)] {
        let image = noise(6, width, height, 0.0, 256.0);
        for seed in 0..20 {
            let mut out = vec![1; 3 * 24 * 24];
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            view.apply(&image, &mut rng, &mut scratch, &mut out)
                .unwrap();
            let mut again = vec![2; 3 * 24 * 24];
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            view.apply(&image, &mut rng, &mut Scratch::default(), &mut again)
                .unwrap();
            assert_eq!(out, again, "{width} x {height}, seed {seed}");
        }
    }
}

#[test]
fn bad_arguments_are_errors() {
    let image = noise(1, 5, 4, 0.0, 256.0);
    let mut out = image.clone();
    let mut resizer = Resizer::default();
    for (left, width, size) in [(3, 3, 4), (0, 0, 4), (usize::MAX, 2, 4), (0, 5, 0)] {
        let crop = Crop {
            left,
            top: 0,
            width,
            height: 4,
        };
        let error = transform::resize(&mut resizer, &image, crop, size, size, &mut out);
        assert!(
            matches!(error, Err(DataError::Crop { .. })),
            "{left} {width} {size}"
        );
    }
    let view = ImageView::new(&DataConfig::default(), &ViewConfig::default()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut scratch = Scratch::default();
    let short = view.apply(&image, &mut rng, &mut scratch, &mut [0; 5]);
    assert!(matches!(
        short,
        Err(DataError::Output {
            expected: 150_528,
            found: 5
        })
    ));
    let hollow = Image {
        width: 9,
        ..image.clone()
    };
    let error = view.apply(&hollow, &mut rng, &mut scratch, &mut vec![0; 150_528]);
    assert!(matches!(error, Err(DataError::ImageSize { .. })));
}

/// Of an image far longer than wide the part that is seen is made alone, in a memory that its length does
/// not decide, and is what is seen of the whole.
#[test]
fn the_view_of_a_ribbon_is_that_of_its_middle() {
    let ribbon = |length: usize, upright: bool| {
        let pixels = (0..length)
            .flat_map(|at| [(at % 251) as u8, (at / 251) as u8, 7])
            .collect();
        match upright {
            true => Image::new(1, length, pixels).unwrap(),
            false => Image::new(length, 1, pixels).unwrap(),
        }
    };
    let view = |stretch| EvalView {
        resize: 64,
        crop: 48,
        stretch,
        mean: vec![0.5; 3],
        std: vec![0.5; 3],
    };
    for upright in [true, false] {
        // 16,001 pixels make an image of 65 million pixels, which is made as a whole; 16,801 are more.
        let small = ribbon(16_001, upright);
        let middle = view(false).pixels(&small, &mut Scratch::default()).unwrap();
        let mut long = ribbon(16_801, upright);
        // The same colours in the middle.
        let shift = 3 * 400;
        long.pixels[shift..shift + small.pixels.len()].copy_from_slice(&small.pixels);
        let found = view(false).pixels(&long, &mut Scratch::default()).unwrap();
        let pairs = found.pixels.iter().zip(&middle.pixels);
        assert!(
            pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap() <= 1,
            "{upright}"
        );
        let enormous = view(true)
            .pixels(&ribbon(300_000, upright), &mut Scratch::default())
            .unwrap();
        assert_eq!((enormous.width, enormous.height), (48, 48));
    }
}
