//! The pretext tasks: patches come back to the image they were cut from, and labels say how.

use std::collections::HashSet;

use pirl_data::transform::Crop;
use pirl_data::{
    DataConfig, DataError, Image, ImageView, Pretext, PretextConfig, PretextKind, Scratch,
    ViewConfig, build_pretext,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A view that leaves the image as it is.
fn plain() -> ViewConfig {
    ViewConfig {
        scale: [1.0, 1.0],
        ratio: [1.0, 1.0],
        flip: 0.0,
        jitter_probability: 0.0,
        photometric: 0.0,
        gray: 0.0,
        ..ViewConfig::default()
    }
}

/// Normalisation that leaves `value / 255`.
fn data(image_size: usize, patch_size: usize) -> DataConfig {
    DataConfig {
        image_size,
        patch_size,
        limit: 0,
        partial: false,
        channels: 3,
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    }
}

fn jigsaw(grid: usize, crop_size: usize, permutations: usize) -> PretextConfig {
    PretextConfig {
        kind: PretextKind::Jigsaw,
        grid,
        permutations,
        crop_size,
    }
}

/// Every pixel different from every other.
fn numbered(side: usize) -> Image {
    let pixels = (0..side * side)
        .flat_map(|i| [(i / 256) as u8, (i % 256) as u8, 7])
        .collect();
    Image::new(side, side, pixels).unwrap()
}

fn apply(task: &dyn Pretext, image: &Image, seed: u64) -> (u32, Vec<u8>) {
    let side = task.view_size();
    let mut out = vec![99; task.views() * 3 * side * side];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let label = task
        .apply(image, &mut rng, &mut Scratch::default(), &mut out)
        .unwrap();
    (label, out)
}

/// Pixel `(x, y)` of a view, as the number [`numbered`] gave it.
fn number(view: &[u8], side: usize, x: usize, y: usize) -> usize {
    let at = |channel: usize| usize::from(view[(channel * side + y) * side + x]);
    assert_eq!(at(2), 7);
    at(0) * 256 + at(1)
}

/// The cell each view shows, checked pixel by pixel: unshuffling restores the image.
fn order(views: &[u8], grid: usize, cell: usize) -> Vec<usize> {
    let across = grid * cell;
    let views = views.chunks_exact(3 * cell * cell);
    let order: Vec<usize> = views
        .map(|view| {
            let first = number(view, cell, 0, 0);
            let (left, top) = (first % across, first / across);
            assert_eq!((left % cell, top % cell), (0, 0));
            for y in 0..cell {
                for x in 0..cell {
                    assert_eq!(number(view, cell, x, y), (top + y) * across + left + x);
                }
            }
            top / cell * grid + left / cell
        })
        .collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..grid * grid), "{order:?}");
    order
}

#[test]
fn unshuffling_restores_the_image() {
    for grid in 1..=4 {
        let cell = 6;
        let side = grid * cell;
        let task = build_pretext(&jigsaw(grid, side, 0), &data(side, cell), &plain(), 0).unwrap();
        assert_eq!(
            (task.views(), task.view_size(), task.labels()),
            (grid * grid, cell, 0)
        );
        let mut orders = HashSet::new();
        for seed in 0..40 {
            let (label, views) = apply(&*task, &numbered(side), seed);
            assert_eq!(label, 0);
            orders.insert(order(&views, grid, cell));
        }
        let enough = [1, 15, 38, 38][grid - 1];
        assert!(
            orders.len() >= enough,
            "grid {grid}: {} orders",
            orders.len()
        );
    }
}

#[test]
fn all_orders_are_as_likely() {
    let task = build_pretext(&jigsaw(2, 8, 0), &data(8, 4), &plain(), 0).unwrap();
    let mut counts = std::collections::HashMap::new();
    for seed in 0..4800 {
        let (_, views) = apply(&*task, &numbered(8), seed);
        *counts.entry(order(&views, 2, 4)).or_insert(0_u32) += 1;
    }
    // 24 orders, 200 times each: five deviations of a binomial are 69.
    assert_eq!(counts.len(), 24);
    assert!(
        counts.values().all(|count| count.abs_diff(200) < 69),
        "{counts:?}"
    );
}

#[test]
fn the_label_names_the_order() {
    let config = jigsaw(3, 12, 20);
    let task = build_pretext(&config, &data(12, 4), &plain(), 9).unwrap();
    assert_eq!(task.labels(), 20);
    let mut orders = std::collections::HashMap::new();
    for seed in 0..400 {
        let (label, views) = apply(&*task, &numbered(12), seed);
        let found = order(&views, 3, 4);
        assert_eq!(*orders.entry(label).or_insert_with(|| found.clone()), found);
    }
    let different: HashSet<_> = orders.values().collect();
    assert_eq!((orders.len(), different.len()), (20, 20));
    assert!(orders.keys().all(|label| *label < 20));
    // Another run with the same seed has the same set, another seed another.
    let (label, views) = apply(
        &*build_pretext(&config, &data(12, 4), &plain(), 9).unwrap(),
        &numbered(12),
        1,
    );
    assert_eq!(orders[&label], order(&views, 3, 4));
    let other = build_pretext(&config, &data(12, 4), &plain(), 10).unwrap();
    let (label, views) = apply(&*other, &numbered(12), 1);
    assert_ne!(orders[&label], order(&views, 3, 4));
}

#[test]
fn offsets_fill_the_room_that_vissl_draws_from() {
    // Cells of 8, patches of 5: offsets 0, 1, 2, and 3 never, though it fits.
    let task = build_pretext(&jigsaw(2, 16, 0), &data(16, 5), &plain(), 0).unwrap();
    let mut seen = HashSet::new();
    for seed in 0..200 {
        let (_, views) = apply(&*task, &numbered(16), seed);
        for view in views.chunks_exact(3 * 25) {
            let first = number(view, 5, 0, 0);
            seen.insert((first % 16 % 8, first / 16 % 8));
        }
    }
    let expected: HashSet<_> = (0..3).flat_map(|x| (0..3).map(move |y| (x, y))).collect();
    assert_eq!(seen, expected);
}

#[test]
fn rotation_turns_the_view_and_counts_the_quarters() {
    let config = PretextConfig {
        kind: PretextKind::Rotation,
        ..PretextConfig::default()
    };
    let task = build_pretext(&config, &data(10, 3), &plain(), 0).unwrap();
    assert_eq!((task.views(), task.view_size(), task.labels()), (1, 10, 4));
    let mut labels = HashSet::new();
    for seed in 0..40 {
        let (label, view) = apply(&*task, &numbered(10), seed);
        labels.insert(label);
        // Counter-clockwise: where the top left corner (0) is found.
        let (x, y) = [(0, 0), (0, 9), (9, 9), (9, 0)][label as usize];
        assert_eq!(number(&view, 10, x, y), 0, "label {label}");
    }
    assert_eq!(labels.len(), 4);
}

#[test]
fn a_jigsaw_of_a_turned_image_has_turned_patches() {
    let config = PretextConfig {
        kind: PretextKind::JigsawRotation,
        ..jigsaw(2, 8, 6)
    };
    let task = build_pretext(&config, &data(8, 4), &plain(), 0).unwrap();
    assert_eq!((task.views(), task.labels()), (4, 6));
    let mut steps = HashSet::new();
    for seed in 0..60 {
        let (label, views) = apply(&*task, &numbered(8), seed);
        assert!(label < 6);
        let view = &views[..3 * 16];
        // One pixel to the right in the patch is one of these in the image of 8 columns.
        steps.insert(number(view, 4, 1, 0) as i64 - number(view, 4, 0, 0) as i64);
    }
    assert_eq!(steps, HashSet::from([1, 8, -1, -8]));
}

#[test]
fn patches_are_augmented_apart() {
    // Of a flat image only the colours of patches can differ.
    let image = Image::new(12, 12, [180, 90, 40].repeat(144)).unwrap();
    let view = ViewConfig {
        jitter_probability: 1.0,
        ..plain()
    };
    let task = build_pretext(&jigsaw(3, 12, 0), &data(12, 4), &view, 0).unwrap();
    let (_, views) = apply(&*task, &image, 3);
    let colors: HashSet<[u8; 3]> = views
        .chunks_exact(3 * 16)
        .map(|view| [view[0], view[16], view[32]])
        .collect();
    assert!(colors.len() >= 8, "{colors:?}");
}

#[test]
fn no_task_has_no_views() {
    let config = PretextConfig {
        kind: PretextKind::None,
        ..PretextConfig::default()
    };
    let task = build_pretext(&config, &data(8, 4), &plain(), 0).unwrap();
    assert_eq!((task.views(), task.labels()), (0, 0));
    assert_eq!(apply(&*task, &numbered(8), 0), (0, Vec::new()));
}

#[test]
fn settings_that_cannot_work_are_named() {
    let fails = |config: &PretextConfig, patch: usize| {
        build_pretext(config, &data(24, patch), &plain(), 0)
            .err()
            .expect("it cannot work")
            .to_string()
    };
    let error = fails(&jigsaw(3, 30, 0), 11);
    assert_eq!(
        error,
        "patch_size = 11: must be at most 10, the side of a cell: crop_size = 30 over grid = 3"
    );
    assert!(fails(&jigsaw(0, 30, 0), 4).starts_with("grid = 0"));
    assert!(fails(&jigsaw(3, 0, 0), 4).starts_with("crop_size = 0"));
    assert!(fails(&jigsaw(2, 30, 25), 4).starts_with("permutations = 25"));
    let task = build_pretext(&jigsaw(3, 30, 0), &data(24, 4), &plain(), 0).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let error = task.apply(&numbered(8), &mut rng, &mut Scratch::default(), &mut [0; 3]);
    assert!(matches!(
        error,
        Err(DataError::Output {
            expected: 432,
            found: 3
        })
    ));
}

#[test]
fn a_trace_tells_where_the_last_views_came_from() {
    let image = numbered(60);
    let turned = PretextConfig {
        kind: PretextKind::JigsawRotation,
        ..jigsaw(3, 60, 0)
    };
    let task = build_pretext(&turned, &data(60, 20), &plain(), 0).unwrap();
    let mut scratch = Scratch::default();
    let mut out = vec![0; 9 * 3 * 20 * 20];
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut turns = HashSet::new();
    for _ in 0..20 {
        task.apply(&image, &mut rng, &mut scratch, &mut out)
            .unwrap();
        let trace = scratch.trace();
        assert_eq!(trace.crop, Some(Crop::whole(&image)));
        turns.insert(trace.turned_before);
        assert_eq!(trace.patches.len(), 9);
        for (patch, view) in trace.patches.iter().zip(out.chunks_exact(3 * 20 * 20)) {
            let place = patch.place;
            assert_eq!(patch.cell, place.top / 20 * 3 + place.left / 20);
            let corner = scratch.crop().pixel(place.left, place.top).unwrap();
            assert_eq!([view[0], view[400], view[800]], corner);
        }
    }
    assert_eq!(turns.len(), 4);

    // Nothing is left of an earlier task.
    let view = ImageView::new(&data(30, 20), &ViewConfig::default()).unwrap();
    let mut out = vec![0; 3 * 30 * 30];
    view.apply(&image, &mut rng, &mut scratch, &mut out)
        .unwrap();
    let trace = scratch.trace();
    assert!(trace.patches.is_empty() && trace.turned_before == 0 && trace.turned_after == 0);
    assert_eq!(scratch.crop(), &Image::from_planes(30, 30, &out).unwrap());
}
