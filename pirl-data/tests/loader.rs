//! The loader: the same batches whatever the threads, from any step, and no hang when things break.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use common::{Samples, jpeg, overwrite, picture, png, webp, write};
use pirl_data::{
    Batch, DataConfig, DataError, Encoding, EvalView, Image, ImageView, Loader, LoaderConfig,
    OnCorrupt, Pack, PackOptions, Pretext, PretextConfig, PretextKind, Scratch, Share, ViewConfig,
    build_pretext, eval_batches, pack,
};
use rand::Rng;
use tempfile::TempDir;

const IMAGES: usize = 23;

/// Images of all sorts of sizes; each tells its number by its width.
fn samples(encode: fn(&Image) -> Vec<u8>, encoding: Encoding) -> Samples {
    let sample = |index| {
        let image = picture(index + 1, (index * 7) % 31 + 1);
        (encode(&image), encoding, Some(index as u32 % 3))
    };
    Samples {
        samples: (0..IMAGES).map(sample).collect(),
        class_names: ["a", "b", "c"].map(String::from).to_vec(),
        objects: None,
        first: 0,
    }
}

fn packed(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("images");
    let source = samples(png, Encoding::Png);
    pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    path
}

fn data() -> DataConfig {
    DataConfig {
        image_size: 20,
        patch_size: 5,
        ..DataConfig::default()
    }
}

fn view() -> ImageView {
    ImageView::new(&data(), &ViewConfig::default()).unwrap()
}

fn jigsaw() -> Arc<dyn Pretext> {
    let config = PretextConfig {
        permutations: 10,
        crop_size: 21,
        ..PretextConfig::default()
    };
    Arc::from(build_pretext(&config, &data(), &ViewConfig::patch(), 4).unwrap())
}

fn config(batch_size: usize, workers: usize, look_ahead: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size,
        micro_batch: 0,
        workers,
        look_ahead,
        look_ahead_mib: 1024,
        seed: 11,
        on_corrupt: OnCorrupt::Fail,
        share: Share::default(),
        samples: None,
    }
}

fn loader(path: &Path, config: LoaderConfig) -> Loader {
    Loader::new(
        Arc::new(Pack::open(path).unwrap()),
        view(),
        Some(jigsaw()),
        config,
    )
    .unwrap()
}

/// A batch to the bit.
fn bits(batch: &Batch) -> (Vec<u8>, Vec<u8>, Vec<u32>, Vec<u32>) {
    let bytes = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    (
        bytes(&batch.images),
        bytes(batch.transformed.as_ref().unwrap()),
        batch.indices.clone(),
        batch.targets.clone(),
    )
}

#[test]
fn batches_do_not_depend_on_threads_and_start_anywhere() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    let epoch = |workers, look_ahead, epoch, start| -> Vec<_> {
        loader(&path, config(4, workers, look_ahead))
            .epoch(epoch, start)
            .unwrap()
            .map(|batch| bits(&batch.unwrap()))
            .collect()
    };
    let whole = epoch(1, 1, 3, 0);
    assert_eq!(whole.len(), 5);
    for (workers, look_ahead) in [(2, 1), (4, 2), (8, 5), (0, 3)] {
        assert!(
            epoch(workers, look_ahead, 3, 0) == whole,
            "{workers} threads"
        );
    }
    for start in 0..=5 {
        assert!(epoch(2, 3, 3, start) == whole[start..], "from step {start}");
    }
    assert!(epoch(2, 3, 4, 0) != whole);
    assert_eq!(epoch(2, 3, 3, 9).len(), 0);
}

#[test]
fn shares_put_together_are_the_batches() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    let share = |rank, ranks| LoaderConfig {
        micro_batch: 1,
        share: Share { rank, ranks },
        ..config(4, 2, 2)
    };
    let parts = |config| -> Vec<_> {
        let parts = loader(&path, config).epoch(3, 1).unwrap();
        parts.map(|part| bits(&part.unwrap())).collect()
    };
    let whole = parts(share(0, 1));
    for ranks in [2, 3, 4] {
        let shares: Vec<Vec<_>> = (0..ranks).map(|rank| parts(share(rank, ranks))).collect();
        let steps = whole.chunks(4).enumerate();
        for (step, batch) in steps {
            let of_rank = |rank: usize| {
                let count = shares[rank].len() / 4;
                shares[rank][step * count..(step + 1) * count].to_vec()
            };
            let joined: Vec<_> = (0..ranks).flat_map(of_rank).collect();
            assert!(joined == batch, "{ranks} shares, step {step}");
        }
    }
    let pack = Arc::new(Pack::open(&path).unwrap());
    let error = Loader::new(pack, view(), Some(jigsaw()), share(0, 5)).unwrap_err();
    assert!(error.to_string().contains("parts of a batch, 4"), "{error}");
}

#[test]
fn a_share_with_samples_of_its_own_is_drawn_from_them_alone() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    damage(&path, 3);
    // Two of three places of a batch, and one.
    let samples = [(0..20).step_by(2).collect(), vec![1, 3, 5, 7, 19]];
    let share = |rank: usize| LoaderConfig {
        micro_batch: 1,
        on_corrupt: OnCorrupt::Skip,
        share: Share { rank, ranks: 2 },
        samples: Some(samples[1 - rank].clone()),
        ..config(3, 2, 2)
    };
    let parts = |rank, epoch, start| -> Vec<_> {
        let parts = loader(&path, share(rank)).with_steps(4).epoch(epoch, start);
        parts.unwrap().map(|part| bits(&part.unwrap())).collect()
    };
    for (rank, places, whole) in [(0, 1, 4), (1, 2, 4)] {
        let all = loader(&path, share(rank));
        assert_eq!(all.steps_per_epoch(), samples[1 - rank].len() / places);
        let epoch = parts(rank, 3, 0);
        assert_eq!(epoch.len(), whole * places);
        let mut seen: Vec<u32> = epoch.iter().flat_map(|part| part.2.clone()).collect();
        assert!(
            seen.iter()
                .all(|index| samples[1 - rank].contains(index) && *index != 3)
        );
        // The damaged one is replaced by one that comes again in another step.
        seen.sort_unstable();
        seen.dedup();
        assert!(
            seen.len() + usize::from(rank == 0) >= whole * places,
            "{seen:?}"
        );
        assert!(parts(rank, 3, 2) == epoch[2 * places..]);
        assert!(parts(rank, 4, 0) != epoch);
    }
    let pack = Arc::new(Pack::open(&path).unwrap());
    let few = LoaderConfig {
        samples: Some(vec![4]),
        ..share(1)
    };
    let error = Loader::new(pack, view(), Some(jigsaw()), few).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("samples = 1: must be at least 2"),
        "{error}"
    );
}

#[test]
fn parts_put_together_are_the_batches() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    for index in [2, 9, 16] {
        damage(&path, index);
    }
    let epoch = |micro_batch, start| -> Vec<_> {
        let config = LoaderConfig {
            micro_batch,
            on_corrupt: OnCorrupt::Skip,
            ..config(7, 2, 2)
        };
        let loader = loader(&path, config);
        let count = loader.parts();
        let parts: Vec<Batch> = loader
            .epoch(5, start)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(parts.len(), (3 - start) * count);
        let batches = parts.chunks(count).map(|parts| {
            let sizes: Vec<usize> = parts.iter().map(|part| part.indices.len()).collect();
            let mut whole = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for part in parts {
                let (images, patches, indices, targets) = bits(part);
                whole.0.extend(images);
                whole.1.extend(patches);
                whole.2.extend(indices);
                whole.3.extend(targets);
            }
            let skipped = parts.iter().map(|part| part.skipped).sum::<usize>();
            (sizes, (whole, skipped))
        });
        batches.collect()
    };
    let whole = epoch(0, 0);
    // An epoch leaves out two images.
    assert!(whole.iter().any(|(_, (_, skipped))| *skipped > 0));
    for (micro_batch, sizes) in [
        (1, vec![1; 7]),
        (2, vec![1, 2, 2, 2]),
        (3, vec![2, 2, 3]),
        (6, vec![3, 4]),
        (7, vec![7]),
        (100, vec![7]),
    ] {
        let parts = epoch(micro_batch, 0);
        for (found, expected) in parts.iter().zip(&whole) {
            assert_eq!(found.0, sizes);
            assert!(found.1 == expected.1, "{micro_batch}");
        }
        assert!(epoch(micro_batch, 1) == parts[1..]);
    }
}

#[test]
fn an_epoch_shows_every_image_once_in_a_new_order() {
    let folder = TempDir::new().unwrap();
    let loader = loader(&packed(&folder), config(4, 2, 2));
    assert_eq!(loader.steps_per_epoch(), 5);
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let mut order = Vec::new();
        for batch in loader.epoch(epoch, 0).unwrap() {
            let batch = batch.unwrap();
            assert_eq!(batch.images.dims(), [4, 3, 20, 20]);
            assert_eq!(batch.transformed.as_ref().unwrap().dims(), [36, 3, 5, 5]);
            assert_eq!((batch.targets.len(), batch.skipped), (4, 0));
            assert!(batch.targets.iter().all(|label| *label < 10));
            order.extend(batch.indices);
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 20);
        orders.push(order);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
}

#[test]
fn without_a_pretext_task_there_are_no_patches() {
    let folder = TempDir::new().unwrap();
    let pack = Arc::new(Pack::open(packed(&folder)).unwrap());
    let none = PretextConfig {
        kind: PretextKind::None,
        ..PretextConfig::default()
    };
    let none = build_pretext(&none, &data(), &ViewConfig::patch(), 0).unwrap();
    for pretext in [None, Some(Arc::from(none))] {
        let loader = Loader::new(pack.clone(), view(), pretext, config(6, 2, 2)).unwrap();
        let batch = loader.epoch(0, 0).unwrap().next().unwrap().unwrap();
        assert!(batch.transformed.is_none());
        assert_eq!(batch.images.dims(), [6, 3, 20, 20]);
        assert_eq!(batch.targets, [0; 6]);
    }
}

fn damage(path: &Path, index: usize) {
    let length = Pack::open(path).unwrap().bytes(index).unwrap().len();
    overwrite(path, index, &vec![0x55; length]);
}

/// Lossless WebP is packed as it is: what is trained on is what it would be of PNG.
#[test]
fn batches_of_lossless_webp_are_those_of_png() {
    let folder = TempDir::new().unwrap();
    let epoch = |name: &str, source: Samples| -> Vec<_> {
        let path = folder.path().join(name);
        let report = write(&source, &path, &PackOptions::default());
        assert_eq!(report.encoding, source.samples[0].1);
        let pack = Pack::open(&path).unwrap();
        for (index, (bytes, ..)) in source.samples.iter().enumerate() {
            assert_eq!(pack.bytes(index), Some(&**bytes));
        }
        let batches = loader(&path, config(4, 2, 2)).epoch(1, 0).unwrap();
        batches.map(|batch| bits(&batch.unwrap())).collect()
    };
    let of_png = epoch("png", samples(png, Encoding::Png));
    assert_eq!(of_png.len(), IMAGES / 4);
    assert!(of_png == epoch("webp", samples(webp, Encoding::WebP)));
}

#[test]
fn a_corrupt_sample_is_replaced_or_reported() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    damage(&path, 2);
    damage(&path, 9);
    let skip = |workers| {
        let skip = LoaderConfig {
            on_corrupt: OnCorrupt::Skip,
            ..config(4, workers, 2)
        };
        let mut skipped = 0;
        let mut all = Vec::new();
        for batch in loader(&path, skip).epoch(1, 0).unwrap() {
            let batch = batch.unwrap();
            skipped += batch.skipped;
            let mut different = batch.indices.clone();
            different.sort_unstable();
            different.dedup();
            assert_eq!(different.len(), 4, "{:?}", batch.indices);
            assert!(!different.contains(&2) && !different.contains(&9));
            all.push(bits(&batch));
        }
        (skipped, all)
    };
    let (skipped, all) = skip(1);
    assert!((1..=4).contains(&skipped), "{skipped}");
    assert!(skip(4) == (skipped, all));

    let mut batches = loader(&path, config(23, 2, 2)).epoch(1, 0).unwrap();
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::Decode { .. }), "{error}");
    assert!(error.to_string().contains("sample 2 ") || error.to_string().contains("sample 9 "));
    assert!(batches.next().is_none());
}

#[test]
fn a_place_without_any_good_sample_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    (0..IMAGES).for_each(|index| damage(&path, index));
    let skip = LoaderConfig {
        on_corrupt: OnCorrupt::Skip,
        ..config(4, 2, 2)
    };
    let mut batches = loader(&path, skip).epoch(0, 0).unwrap();
    assert!(matches!(
        batches.next(),
        Some(Err(DataError::Decode { .. }))
    ));
    assert!(batches.next().is_none());
}

/// A task that counts, and panics at the image of a given width.
struct Trap {
    calls: AtomicUsize,
    width: usize,
}

impl Pretext for Trap {
    fn views(&self) -> usize {
        1
    }

    fn view_size(&self) -> usize {
        2
    }

    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        image: &Image,
        _: &mut dyn Rng,
        _: &mut Scratch,
        _: &mut [u8],
    ) -> Result<u32, DataError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(image.width != self.width, "sprung");
        Ok(0)
    }
}

fn trapped(path: &Path, width: usize, config: LoaderConfig) -> (Loader, Arc<Trap>) {
    let trap = Arc::new(Trap {
        calls: AtomicUsize::new(0),
        width,
    });
    let pack = Arc::new(Pack::open(path).unwrap());
    let pretext: Arc<dyn Pretext> = trap.clone();
    (
        Loader::new(pack, view(), Some(pretext), config).unwrap(),
        trap,
    )
}

#[test]
fn a_panic_names_its_sample() {
    let folder = TempDir::new().unwrap();
    let (loader, _) = trapped(&packed(&folder), 6, config(23, 3, 2));
    let mut batches = loader.epoch(0, 0).unwrap();
    let error = batches.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the loader failed at sample 5: sprung");
    assert!(batches.next().is_none());
}

#[test]
fn memory_is_bounded_and_dropping_stops_the_work() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    for look_ahead in [1, 2, 3, 5] {
        let (loader, trap) = trapped(&path, usize::MAX, config(1, 2, look_ahead));
        let mut batches = loader.epoch(0, 0).unwrap();
        batches.next().unwrap().unwrap();
        // A batch in each producer is the least there can be.
        let bound = 1 + look_ahead.max(2);
        let start = Instant::now();
        while trap.calls.load(Ordering::SeqCst) < bound {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the loader stopped early"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(
            trap.calls.load(Ordering::SeqCst),
            bound,
            "{look_ahead} ahead"
        );
        drop(batches);
        assert!(trap.calls.load(Ordering::SeqCst) <= bound + 2);
    }
}

#[test]
fn settings_that_cannot_work_are_named() {
    let folder = TempDir::new().unwrap();
    let pack = Arc::new(Pack::open(packed(&folder)).unwrap());
    for (settings, expected) in [
        (config(0, 1, 1), "batch_size = 0: must be at least 1"),
        (
            config(24, 1, 1),
            "batch_size = 24: must be at most 23, the images of the pack",
        ),
        (config(2, 1, 0), "look_ahead = 0: must be at least 1"),
    ] {
        let error = Loader::new(pack.clone(), view(), None, settings).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn evaluation_shows_all_images_in_order() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("jpegs");
    let source = samples(jpeg, Encoding::Jpeg);
    pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    let pack = Pack::open(&path).unwrap();
    let view = EvalView {
        resize: 12,
        crop: 9,
        stretch: false,
        mean: vec![0.5; 3],
        std: vec![0.5; 3],
    };
    let mut labels = Vec::new();
    let mut sizes = Vec::new();
    for batch in eval_batches(&pack, &view, 10, 2, &Device::Cpu).unwrap() {
        let (images, own) = batch.unwrap();
        sizes.push(images.dims4().unwrap());
        let first = labels.len();
        let mut expected = vec![0; 3 * 81];
        let image = pack.decode(first).unwrap();
        view.apply(&image, &mut Scratch::default(), &mut expected)
            .unwrap();
        let found = images.get(0).unwrap().flatten_all().unwrap();
        let numbers = expected.iter().map(|&x| (f32::from(x) / 255.0 - 0.5) / 0.5);
        assert!(found.to_vec1::<f32>().unwrap().into_iter().eq(numbers));
        labels.extend(own);
    }
    assert_eq!(sizes, [(10, 3, 9, 9), (10, 3, 9, 9), (3, 3, 9, 9)]);
    let batches = || eval_batches(&pack, &view, 10, 2, &Device::Cpu).unwrap();
    let values = |batch: Result<(Tensor, _), DataError>| {
        let images = batch.unwrap().0.flatten_all().unwrap();
        images.to_vec1::<f32>().unwrap()
    };
    let all: Vec<_> = batches().map(values).collect();
    let odd: Vec<_> = batches().skip(1).step_by(2).map(values).collect();
    assert!(odd == all[1..2]);
    let even: Vec<_> = batches().step_by(2).map(values).collect();
    assert!(even == [all[0].clone(), all[2].clone()]);
    assert!(batches().nth(3).is_none());
    assert!(
        labels
            .into_iter()
            .eq((0..IMAGES).map(|index| Some(index as u32 % 3)))
    );
    assert!(eval_batches(&pack, &view, 0, 1, &Device::Cpu).is_err());
    let none = EvalView { crop: 0, ..view };
    assert!(eval_batches(&pack, &none, 4, 1, &Device::Cpu).is_err());
}
