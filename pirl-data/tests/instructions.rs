//! Views are the same bytes by every instruction set of the processor.

use pirl_core::Instructions;
use pirl_data::{DataConfig, Image, ImageView, Scratch, ViewConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Views of an odd size with all colours, by 40 seeds.
fn views() -> Vec<Vec<u8>> {
    let data = DataConfig {
        image_size: 29,
        ..DataConfig::default()
    };
    let config = ViewConfig {
        photometric: 0.5,
        gray: 0.2,
        blur_probability: 0.5,
        ..ViewConfig::default()
    };
    let view = ImageView::new(&data, &config).unwrap();
    let pixels = benches::fill(6, 47 * 31 * 3).into_iter();
    let pixels = pixels.map(|x| (x * 127.0 + 128.0) as u8).collect();
    let image = Image::new(47, 31, pixels).unwrap();
    let mut scratch = Scratch::default();
    let one = |seed| {
        let mut out = vec![0; 3 * 29 * 29];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        view.apply(&image, &mut rng, &mut scratch, &mut out)
            .unwrap();
        out
    };
    (0..40).map(one).collect()
}

// One test: the set in use is that of the whole process.
#[test]
fn views_are_the_same_by_every_instruction_set() {
    Instructions::Baseline.use_at_most();
    let expected = views();
    for set in Instructions::ALL {
        set.use_at_most();
        for (seed, (found, expected)) in views().iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{set}, seed {seed}");
        }
    }
}
