//! The work of packing: failures, interruptions, threads; nothing half-written.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Samples, jpeg, list_dir, mixed_folder, picture, png, write};
use pirl_data::{DataError, Encoding, ImageFolder, Pack, PackOptions, pack};
use tempfile::TempDir;

#[test]
fn undecodable_images_are_skipped_and_named_or_fail_when_strict() {
    let images = TempDir::new().unwrap();
    let good = jpeg(&picture(24, 16));
    fs::write(images.path().join("a.jpg"), &good).unwrap();
    fs::write(images.path().join("b.jpg"), &good[..good.len() - 10]).unwrap();
    fs::write(images.path().join("c.jpg"), &good[..good.len() / 2]).unwrap();
    fs::write(images.path().join("d.jpg"), "once upon a time").unwrap();
    fs::write(images.path().join("e.jpg"), "").unwrap();
    let drawing = png(&picture(8, 8));
    fs::write(images.path().join("f.png"), &drawing).unwrap();
    fs::write(images.path().join("g.png"), &drawing[..drawing.len() - 20]).unwrap();
    let folder = ImageFolder::open(images.path()).unwrap();

    let dir = TempDir::new().unwrap();
    let report = write(&folder, &dir.path().join("set"), &PackOptions::default());
    assert_eq!(report.packed, 2);
    assert_eq!(report.encoding, Encoding::Mixed);
    let names: Vec<_> = report.skipped.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["b.jpg", "c.jpg", "d.jpg", "e.jpg", "g.png"]);
    assert!(
        report.skipped[0].reason.contains("truncated"),
        "{:?}",
        report.skipped
    );
    assert!(
        report.skipped[2].reason.contains("once upon a"),
        "{:?}",
        report.skipped
    );
    let packed = Pack::open(dir.path().join("set")).unwrap();
    assert_eq!(packed.bytes(0), Some(&*good));
    assert_eq!(packed.decode(1).unwrap(), picture(8, 8));

    let strict = PackOptions {
        strict: true,
        ..PackOptions::default()
    };
    let error = pack(&folder, &dir.path().join("strict"), &strict, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("b.jpg"), "{error}");
    assert_eq!(list_dir(dir.path()), ["set.safetensors"]);
}

#[test]
fn failures_leave_nothing_behind() {
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), "text").unwrap();
    let nothing = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let result = pack(&nothing, &output, &PackOptions::default(), &mut |_, _| {});
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("a.jpg") && error.contains("no image"),
        "{error}"
    );
    assert!(list_dir(dir.path()).is_empty());

    let stop = Some(Arc::new(AtomicBool::new(true)));
    let options = PackOptions {
        stop,
        ..PackOptions::default()
    };
    let result = pack(&Samples::raw(500, 2), &output, &options, &mut |_, _| {});
    assert!(matches!(result, Err(DataError::Stopped { .. })));
    assert!(list_dir(dir.path()).is_empty());

    // A folder in the way of the last rename: nothing appears, and the work done is kept.
    let obstacle = dir.path().join("set-00002-of-00003.safetensors");
    fs::create_dir(&obstacle).unwrap();
    let options = PackOptions {
        shard_bytes: 16,
        ..PackOptions::default()
    };
    let result = pack(&Samples::raw(12, 3), &output, &options, &mut |_, _| {});
    assert!(matches!(result, Err(DataError::Io { .. })), "{result:?}");
    assert_eq!(
        list_dir(dir.path()),
        ["set-00002-of-00003.safetensors", "set.partial"]
    );
    fs::remove_dir(obstacle).unwrap();
    let report = write(&Samples::raw(12, 3), &output, &options);
    assert_eq!((report.packed, report.resumed), (12, 12));
    assert_eq!(list_dir(dir.path()).len(), 3);
    assert_eq!(Pack::open(&output).unwrap().len(), 12);
}

/// Everything in a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    };
    list_dir(folder).into_iter().map(read).collect()
}

#[test]
fn a_packing_interrupted_anywhere_goes_on_and_comes_out_the_same() {
    let images = mixed_folder();
    let source = ImageFolder::open(images.path()).unwrap();
    let options = PackOptions {
        shard_bytes: 8_000,
        resize_shorter: Some(32),
        ..PackOptions::default()
    };
    let whole = TempDir::new().unwrap();
    let expected = write(&source, &whole.path().join("set"), &options);
    assert!(expected.shards.len() > 3 && expected.skipped.len() == 8);
    let mut kept_some = 0;
    for stop_at in [1, 7, 25, 40, 59, 60] {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("set");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = PackOptions {
            stop: Some(Arc::clone(&stop)),
            ..options.clone()
        };
        let result = pack(&source, &output, &stopping, &mut |done, _| {
            stop.store(done == stop_at, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(matches!(result, Err(DataError::Stopped { done, .. }) if done == stop_at));
        assert!(Pack::open(&output).is_err());
        let report = write(&source, &output, &options);
        assert!(report.resumed < stop_at);
        kept_some += usize::from(report.resumed > 0);
        assert_eq!(report.skipped, expected.skipped);
        assert_eq!(report.fingerprint, expected.fingerprint);
        assert!(contents(dir.path()) == contents(whole.path()), "{stop_at}");
    }
    assert!(kept_some >= 3);
}

#[test]
fn interrupted_work_is_taken_up_by_the_same_work_alone() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let stop = Some(Arc::new(AtomicBool::new(false)));
    let options = PackOptions {
        shard_bytes: 16,
        ..PackOptions::default()
    };
    let stopping = PackOptions {
        stop: stop.clone(),
        ..options.clone()
    };
    let source = |count| {
        let mut source = Samples::raw(count, 3);
        source.first = 100;
        source
    };
    let interrupted = pack(&source(12), &output, &stopping, &mut |done, _| {
        let stop = stop.as_ref().unwrap();
        stop.store(done == 9, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(interrupted.is_err());
    let refused = |source: &Samples, options: &PackOptions| {
        let error = pack(source, &output, options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("begin anew"), "{error}");
        assert!(error.to_string().contains("partial"), "{error}");
    };
    refused(&source(13), &options);
    refused(&source(12), &PackOptions::default());
    // As many images, but other ones.
    refused(&Samples::raw(12, 3), &options);
    assert_eq!(list_dir(dir.path()), ["set.partial"]);
    let report = write(&source(12), &output, &options);
    assert_eq!((report.resumed, report.packed), (8, 12));
    assert!(!dir.path().join("set.partial").exists());
}

#[test]
fn threads_change_nothing() {
    let images = mixed_folder();
    let source = ImageFolder::open(images.path()).unwrap();
    let options = PackOptions {
        shard_bytes: 8_000,
        resize_shorter: Some(32),
        quality: Some(80),
        ..PackOptions::default()
    };
    let packed = [1, 2, 8].map(|threads| {
        let dir = TempDir::new().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let output = dir.path().join("set");
        pool.unwrap().install(|| write(&source, &output, &options));
        contents(dir.path())
    });
    assert!(packed[0] == packed[1] && packed[0] == packed[2]);
}

#[test]
fn an_unwritable_output_is_found_before_anything_is_read() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("absent").join("set");
    let mut calls = 0;
    let result = pack(
        &Samples::raw(9, 0),
        &output,
        &PackOptions::default(),
        &mut |_, _| calls += 1,
    );
    let error = result.unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    assert_eq!(calls, 0);
    assert!(list_dir(dir.path()).is_empty());
}
