//! Folders as people have them, tar archives, and what a packing reports of them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{jpeg, picture, png, write};
use image::ImageFormat;
use pirl_data::{
    DataError, ImageFolder, Labels, Pack, PackOptions, PackReport, Source, SourceFormat,
    SourceOptions, WebDataset, open_source, pack,
};
use tempfile::TempDir;

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_raw(8, 6, picture(8, 6).pixels).unwrap();
    pixels.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn names(source: &dyn Source) -> Vec<String> {
    (0..source.len())
        .map(|index| source.read(index).unwrap().name)
        .collect()
}

/// What was left out, in one text.
fn left_out(report: &PackReport) -> String {
    format!("{:?}", report.skipped)
}

#[test]
fn every_format_is_read_and_every_other_file_is_counted() {
    let dir = TempDir::new().unwrap();
    for (name, format) in [
        ("a.webp", ImageFormat::WebP),
        ("b.BMP", ImageFormat::Bmp),
        ("c.tiff", ImageFormat::Tiff),
        ("d.gif", ImageFormat::Gif),
        ("e.ppm", ImageFormat::Pnm),
        ("f.jfif", ImageFormat::Jpeg),
        ("g.qoi", ImageFormat::Qoi),
        ("h.jpg", ImageFormat::WebP),
        ("0001", ImageFormat::Png),
    ] {
        put(dir.path(), name, &encoded(format));
    }
    put(dir.path(), "readme.txt", b"text");
    put(dir.path(), "LICENSE", b"text");
    put(dir.path(), "more.txt", b"text");
    put(dir.path(), "photo.heic", b"\0\0\0\x18ftypheic");
    let folder = ImageFolder::open(dir.path()).unwrap();
    let out = TempDir::new().unwrap();
    let report = write(&folder, &out.path().join("set"), &PackOptions::default());
    assert_eq!((report.packed, report.skipped.len()), (9, 1));
    assert!(left_out(&report).contains("photo.heic") && left_out(&report).contains("PNG"));
    assert_eq!(report.passed_over[".txt"], 2);
    assert_eq!(report.passed_over["no ending"], 1);
    assert_eq!(
        (report.tally.formats["webp"], report.tally.reencoded),
        (2, 5)
    );
    assert_eq!(report.tally.endings[".bmp"], 1);
    assert_eq!(report.tally.sizes, Some([8, 8, 6, 6]));
    assert_eq!(
        report.tally.duplicates, 5,
        "those encoded anew have the bytes of the first, one WebP those of the other"
    );
    let said = report.to_string();
    for part in [
        "9 images packed",
        "no labels",
        "2 .txt",
        "photo.heic",
        "2 webp",
        "5 of them encoded anew",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    report.save(&out.path().join("set")).unwrap();
    let json = fs::read(out.path().join("set.report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&json["packed"], &json["passed_over"][".txt"]),
        (&9.into(), &2.into())
    );
    assert_eq!(json["skipped"][0]["name"], "photo.heic");
    let strict = PackOptions {
        strict: true,
        ..PackOptions::default()
    };
    let error = pack(&folder, &out.path().join("strict"), &strict, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("photo.heic"), "{error}");
}

#[test]
fn when_nothing_can_be_packed_the_first_are_named_with_their_reasons() {
    let dir = TempDir::new().unwrap();
    for number in 0..25 {
        put(dir.path(), &format!("{number:02}.jpg"), b"<svg xmlns=''/>");
    }
    put(dir.path(), "cut.png", &png(&picture(8, 8))[..40]);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let out = TempDir::new().unwrap();
    let error = pack(
        &folder,
        &out.path().join("set"),
        &PackOptions::default(),
        &mut |_, _| {},
    )
    .unwrap_err();
    let said = error.to_string();
    for part in [
        "26 in all",
        "25 times: SVG is not read",
        "00.jpg",
        "19.jpg",
        "and 5 more",
        "cut.png",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!said.contains("20.jpg"));
    match error {
        DataError::Nothing { skipped, .. } => assert_eq!(skipped.len(), 26),
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_stray_picture_does_not_take_the_labels_away() {
    let dir = TempDir::new().unwrap();
    let image = jpeg(&picture(8, 8));
    for name in ["cat/1.jpg", "dog/2.jpg", "contact sheet.jpg"] {
        put(dir.path(), name, &image);
    }
    let error = ImageFolder::open(dir.path()).unwrap_err().to_string();
    for part in ["contact sheet.jpg", "--labels none", "--labels folders"] {
        assert!(error.contains(part), "{error}");
    }
    let folder = ImageFolder::labelled(dir.path(), Labels::Folders).unwrap();
    assert_eq!((folder.len(), folder.class_names().len()), (2, 2));
    assert_eq!(folder.skipped()[0].name, "contact sheet.jpg");
    let none = ImageFolder::labelled(dir.path(), Labels::None).unwrap();
    assert_eq!((none.len(), none.class_names().len()), (3, 0));
}

#[test]
fn system_folders_are_passed_over_and_wrappers_are_doubted() {
    let dir = TempDir::new().unwrap();
    let image = jpeg(&picture(8, 8));
    for name in [
        "cat/1.jpg",
        "dog/2.jpg",
        "__MACOSX/cat/._1.jpg",
        "@eaDir/thumb.jpg",
        "lost+found/x.jpg",
        ".cache/3.jpg",
        "cat/@eaDir/1.jpg",
        "cat/._1.jpg",
    ] {
        put(dir.path(), name, &image);
    }
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(folder.class_names(), ["cat", "dog"]);
    assert_eq!(names(&folder), ["cat/1.jpg", "dog/2.jpg"]);
    assert!(folder.notes().is_empty());

    let parts = TempDir::new().unwrap();
    for name in ["train/cat/1.jpg", "val/cat/2.jpg"] {
        put(parts.path(), name, &image);
    }
    let note = &ImageFolder::open(parts.path()).unwrap().notes()[0]
        .reason
        .clone();
    assert!(
        note.contains("train, val") && note.contains("--split train"),
        "{note}"
    );

    let wrapper = TempDir::new().unwrap();
    put(wrapper.path(), "dataset/cat/1.jpg", &image);
    put(wrapper.path(), "dataset/dog/1.jpg", &image);
    let note = &ImageFolder::open(wrapper.path()).unwrap().notes()[0]
        .reason
        .clone();
    assert!(
        note.contains("one class only") && note.contains("dataset"),
        "{note}"
    );
}

#[cfg(unix)]
#[test]
fn links_to_nothing_and_circles_are_reported_and_the_rest_is_packed() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().unwrap();
    let image = jpeg(&picture(8, 8));
    put(dir.path(), "a.jpg", &image);
    put(dir.path(), "real/b.jpg", &image);
    symlink(dir.path().join("nowhere"), dir.path().join("gone.jpg")).unwrap();
    symlink(dir.path(), dir.path().join("real/circle")).unwrap();
    symlink(dir.path().join("a.jpg"), dir.path().join("real/link.jpg")).unwrap();
    let folder = ImageFolder::labelled(dir.path(), Labels::None).unwrap();
    assert_eq!(names(&folder), ["a.jpg", "real/b.jpg", "real/link.jpg"]);
    let said = format!("{:?}", folder.skipped());
    assert_eq!(folder.skipped().len(), 2, "{said}");
    assert!(
        said.contains("gone.jpg") && said.contains("a link to nothing") && said.contains("circle")
    );
    // One that vanishes in the meantime is left out like a broken image.
    fs::remove_file(dir.path().join("real/b.jpg")).unwrap();
    let out = TempDir::new().unwrap();
    let report = write(&folder, &out.path().join("set"), &PackOptions::default());
    assert_eq!(report.packed, 2);
    assert!(left_out(&report).contains("real/b.jpg"));
}

#[test]
fn duplicates_are_counted_and_left_out_on_demand() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (jpeg(&picture(8, 8)), jpeg(&picture(9, 9)));
    for (name, bytes) in [
        ("cat/1.jpg", &one),
        ("cat/2.jpg", &one),
        ("dog/3.jpg", &one),
        ("dog/4.jpg", &two),
    ] {
        put(dir.path(), name, bytes);
    }
    let folder = ImageFolder::open(dir.path()).unwrap();
    let out = TempDir::new().unwrap();
    let report = write(&folder, &out.path().join("all"), &PackOptions::default());
    assert_eq!((report.packed, report.tally.duplicates), (4, 2));
    assert_eq!(report.tally.duplicates_labelled_otherwise, 1);
    let dedupe = PackOptions {
        dedupe: true,
        ..PackOptions::default()
    };
    let report = write(&folder, &out.path().join("once"), &dedupe);
    assert_eq!((report.packed, report.skipped.len()), (2, 2));
    let said = left_out(&report);
    assert!(
        said.contains("those of \\\"cat/1.jpg\\\"") && said.contains("with another label"),
        "{said}"
    );
}

/// Labels mended between an interruption and its resumption would be kept wrong in what is done.
#[test]
fn a_packing_is_not_resumed_when_labels_or_files_have_changed() {
    let dir = TempDir::new().unwrap();
    for number in 0..8 {
        put(
            dir.path(),
            &format!("{number}.png"),
            &png(&picture(8, 8 + number)),
        );
    }
    let list = dir.path().join("list.csv");
    let out = TempDir::new().unwrap();
    let output = out.path().join("set");
    let write_list = |second: &str| {
        let line = |number| {
            format!(
                "{number}.png,{}\n",
                if number == 1 { second } else { "cat" }
            )
        };
        fs::write(&list, (0..8).map(line).collect::<String>()).unwrap();
    };
    let source = || {
        open_source(
            SourceFormat::List,
            std::slice::from_ref(&list),
            &SourceOptions::default(),
        )
        .unwrap()
    };
    let options = |stop: Option<Arc<AtomicBool>>| PackOptions {
        shard_bytes: 1,
        stop,
        ..PackOptions::default()
    };
    write_list("dog");
    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = pack(
        &*source(),
        &output,
        &options(Some(stop.clone())),
        &mut |done, _| {
            stop.store(done == 5, Ordering::Relaxed);
        },
    );
    assert!(matches!(interrupted, Err(DataError::Stopped { .. })));
    let refused = || {
        let error = pack(&*source(), &output, &options(None), &mut |_, _| {})
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("has changed") && error.contains(".partial"),
            "{error}"
        );
    };
    // The same number of images and classes.
    write_list("eel");
    refused();
    write_list("dog");
    let old = fs::read(dir.path().join("2.png")).unwrap();
    fs::write(dir.path().join("2.png"), png(&picture(9, 9))).unwrap();
    refused();
    fs::write(dir.path().join("2.png"), &old).unwrap();
    refused(); // the time is another
    fs::remove_dir_all(out.path().join("set.partial")).unwrap();
    assert_eq!(
        pack(&*source(), &output, &options(None), &mut |_, _| {})
            .unwrap()
            .packed,
        8
    );
}

/// A tar of these members.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn the_same_images_make_the_same_pack_from_folder_list_and_tar() {
    let dir = TempDir::new().unwrap();
    let photos: Vec<Vec<u8>> = (0..6).map(|n| jpeg(&picture(20 + n, 30))).collect();
    let class = |n: usize| if n < 3 { "cat" } else { "dog" };
    let mut csv = "path,label\n".to_owned();
    for (n, photo) in photos.iter().enumerate() {
        put(dir.path(), &format!("folder/{}/{n}.jpg", class(n)), photo);
        csv += &format!("folder/{}/{n}.jpg,{}\n", class(n), class(n));
    }
    put(dir.path(), "list.csv", csv.as_bytes());
    let keys: Vec<[String; 2]> = (0..6)
        .map(|n| [format!("{n:04}.jpg"), format!("{n:04}.cls")])
        .collect();
    let member = |n: usize| {
        [
            (keys[n][0].as_str(), &photos[n][..]),
            (keys[n][1].as_str(), class(n).as_bytes()),
        ]
    };
    put(
        dir.path(),
        "tars/train-000.tar",
        &tar(&(0..4).flat_map(member).collect::<Vec<_>>()),
    );
    put(
        dir.path(),
        "tars/train-001.tar",
        &tar(&(4..6).flat_map(member).collect::<Vec<_>>()),
    );
    let json = |n: usize| format!("{{\"label\": \"{}\", \"width\": 20}}", class(n));
    let texts: Vec<(String, String, String)> = (0..6)
        .map(|n| (format!("./a/{n}.json"), json(n), format!("./a/{n}.jpg")))
        .collect();
    let with_json: Vec<(&str, &[u8])> = texts
        .iter()
        .zip(&photos)
        .flat_map(|((json, text, image), photo)| {
            [
                (json.as_str(), text.as_bytes()),
                (image.as_str(), &photo[..]),
            ]
        })
        .collect();
    put(dir.path(), "json.tar", &tar(&with_json));
    let fingerprint = |format, inputs: &[&str]| {
        let inputs: Vec<PathBuf> = inputs.iter().map(|input| dir.path().join(input)).collect();
        let source = open_source(format, &inputs, &SourceOptions::default()).unwrap();
        let out = TempDir::new().unwrap();
        let report = write(&*source, &out.path().join("set"), &PackOptions::default());
        assert_eq!(report.packed, 6, "{}", left_out(&report));
        report.fingerprint
    };
    let expected = fingerprint(SourceFormat::ImageFolder, &["folder"]);
    assert_eq!(fingerprint(SourceFormat::List, &["list.csv"]), expected);
    assert_eq!(fingerprint(SourceFormat::WebDataset, &["tars"]), expected);
    assert_eq!(
        fingerprint(
            SourceFormat::WebDataset,
            &["tars/train-000.tar", "tars/train-001.tar"]
        ),
        expected
    );
    assert_eq!(
        fingerprint(SourceFormat::WebDataset, &["json.tar"]),
        expected
    );
}

#[test]
fn tars_with_faults() {
    let image = jpeg(&picture(8, 8));
    let dir = TempDir::new().unwrap();
    let open = |bytes: &[u8]| {
        put(dir.path(), "x.tar", bytes);
        WebDataset::open(dir.path().join("x.tar"))
    };
    let members: [(&str, &[u8]); 7] = [
        ("a.jpg", &image),
        ("a.cls", b"1"),
        ("b.cls", b"0"),
        ("c.png", &image),
        ("d.jpg", &image),
        ("d.cls", b"0\n"),
        ("d.txt", b"a caption"),
    ];
    let source = open(&tar(&members)).unwrap();
    assert_eq!(names(&source), ["a.jpg", "d.jpg"]);
    assert_eq!(
        (source.read(0).unwrap().label, source.read(1).unwrap().label),
        (Some(1), Some(0))
    );
    let said = format!("{:?}", source.skipped());
    assert!(
        said.contains("a label and no image") && said.contains("no label, but others have"),
        "{said}"
    );
    assert_eq!(source.passed_over()[".txt"], 1);

    let whole = tar(&members[..1]);
    let cut = open(
        &[
            &tar(&[("z.jpg", &image[..])])[..1024 + 512 * image.len().div_ceil(512) - 512],
            &whole[..512 + image.len() / 2],
        ]
        .concat(),
    );
    assert_eq!(cut.unwrap().len(), 1, "what stands before the cut is read");
    let error = open(&[0x1F, 0x8B, 8, 0, 0, 0]).unwrap_err().to_string();
    assert!(error.contains("compressed"), "{error}");
    let error = open(&tar(&[("a.txt", b"x")])).unwrap_err().to_string();
    assert!(error.contains("no member is an image"), "{error}");
    let garbage = open(&[7; 2048]).unwrap_err().to_string();
    assert!(garbage.contains("damaged"), "{garbage}");
    put(dir.path(), "class_names.txt", b"zero\n");
    assert!(matches!(
        open(&tar(&members)),
        Err(DataError::Label { label: 1, .. })
    ));
    put(dir.path(), "class_names.txt", b"zero\none\n");
    assert_eq!(open(&tar(&members)).unwrap().class_names(), ["zero", "one"]);
}

#[test]
fn parts_by_shares_are_disjoint_and_whole() {
    let dir = TempDir::new().unwrap();
    for number in 0..20 {
        put(
            dir.path(),
            &format!("{number:02}.png"),
            &png(&picture(4, 4)),
        );
    }
    let part = |split: &str, seed| {
        let options = SourceOptions {
            split: Some(split.to_owned()),
            seed,
            ..SourceOptions::default()
        };
        open_source(
            SourceFormat::ImageFolder,
            &[dir.path().to_owned()],
            &options,
        )
        .map(|source| names(&*source))
    };
    let (train, test) = (part("80/20", 1).unwrap(), part("80/20:test", 1).unwrap());
    assert_eq!((train.len(), test.len()), (16, 4));
    assert!(train.is_sorted() && test.iter().all(|name| !train.contains(name)));
    assert_eq!(part("80/20:train", 1).unwrap(), train);
    assert_ne!(part("4/1", 2).unwrap(), train);
    assert!(part("0/20", 1).unwrap_err().to_string().contains("above 0"));
    assert!(
        part("80/20:val", 1)
            .unwrap_err()
            .to_string()
            .contains(":test")
    );
}

#[test]
fn inputs_put_together_share_classes_by_name() {
    let dir = TempDir::new().unwrap();
    for (name, side) in [
        ("one/cat/1.png", 4),
        ("one/dog/2.png", 5),
        ("two/ant/3.png", 6),
        ("two/dog/4.png", 7),
    ] {
        put(dir.path(), name, &png(&picture(side, 4)));
    }
    let inputs = ["one", "two"].map(|name| dir.path().join(name));
    let source = open_source(
        SourceFormat::ImageFolder,
        &inputs,
        &SourceOptions::default(),
    )
    .unwrap();
    assert_eq!(source.class_names(), ["ant", "cat", "dog"]);
    let labels: Vec<_> = (0..4)
        .map(|index| source.read(index).unwrap().label.unwrap())
        .collect();
    assert_eq!(labels, [1, 2, 0, 2]);
    let out = TempDir::new().unwrap();
    write(&*source, &out.path().join("set"), &PackOptions::default());
    assert_eq!(
        Pack::open(out.path().join("set")).unwrap().label(3),
        Some(2)
    );
    put(dir.path(), "flat/5.png", &png(&picture(4, 4)));
    let mixed = [dir.path().join("one"), dir.path().join("flat")];
    let error = open_source(SourceFormat::ImageFolder, &mixed, &SourceOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("no classes"), "{error}");
}
