//! The same images, whatever they come in, are the same pack and train to the same losses.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use common::Bench;

/// `fixtures/same/make_same.py`
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/same")
}

/// The paths of the images below their folder, with their classes, in order.
fn images() -> Vec<(String, &'static str)> {
    let mut all = Vec::new();
    for class in ["bars", "rings"] {
        for index in 0..12 {
            all.push((format!("{class}/{index:02}.jpg"), class));
        }
    }
    all
}

/// WebDataset's layout, in two archives.
fn archives(folder: &Path) {
    let all = images();
    for (number, part) in all.chunks(13).enumerate() {
        let file = fs::File::create(folder.join(format!("{number}.tar"))).unwrap();
        let mut archive = tar::Builder::new(file);
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes).unwrap();
        };
        for (path, class) in part {
            let bytes = fs::read(fixtures().join("images").join(path)).unwrap();
            add(path, &bytes);
            add(&path.replace(".jpg", ".cls"), class.as_bytes());
        }
        archive.finish().unwrap();
    }
}

#[test]
fn a_folder_a_list_archives_and_parquet_are_one_pack_and_train_alike() {
    let bench = Bench::new();
    let folder = fixtures().join("images");
    fs::create_dir(bench.path("tars")).unwrap();
    archives(&bench.path("tars"));
    let mut list = "class,path\n".to_owned();
    for (path, class) in images() {
        writeln!(list, "{class},\"{}\"", folder.join(path).display()).unwrap();
    }
    fs::write(bench.path("list.csv"), list).unwrap();

    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let parquet = path(fixtures().join("images.parquet"));
    let mut sources = vec![
        ("image-folder", path(folder.clone())),
        ("webdataset", path(bench.path("tars"))),
        ("list", path(bench.path("list.csv"))),
    ];
    if cfg!(feature = "parquet") {
        sources.push(("parquet", parquet));
    } else {
        let arguments = [
            "data", "pack", "--format", "parquet", "--input", &parquet, "--output", "p",
        ];
        let refused = bench.fails(&arguments);
        assert!(
            refused.contains("needs a build with the feature parquet"),
            "{refused}"
        );
    }
    let mut found = Vec::new();
    for (format, input) in &sources {
        let arguments = [
            "data", "pack", "--format", format, "--input", input, "--output", format,
        ];
        let report = bench.json(&arguments);
        assert_eq!(report["packed"], 24, "{format}");
        let names_tell = ["data", "pack", "--input", input, "--output", "by-names"];
        let said = bench.stderr(&names_tell);
        assert!(said.contains(&format!("format: {format}")), "{said}");
        fs::remove_file(bench.path("by-names.safetensors")).unwrap();
        let run = format!("run-{format}");
        let train = [
            "pretrain",
            "--recipe",
            "tiny.toml",
            "--data",
            format,
            "--out",
            &run,
        ];
        bench
            .pirl(&[&train[..], &["--set", "train.steps=2"]].concat())
            .success();
        let losses = bench.losses(&run);
        assert_eq!(losses.len(), 2);
        found.push((
            report["fingerprint"].clone(),
            report["classes"].clone(),
            losses,
        ));
    }
    for (one, (format, _)) in found.iter().zip(&sources) {
        assert_eq!(*one, found[0], "{format}");
    }
    assert_eq!(found[0].1, serde_json::json!(["bars", "rings"]));
}
