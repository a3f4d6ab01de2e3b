//! What `docs/` says is so: its first pages are run, and the messages that it explains exist.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Bench;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The `pirl` commands of a page's shell blocks, as words.
fn commands(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(docs().join(page)).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    let line = |line: &str| line.split(" #").next().unwrap().trim().to_owned();
    let commands: Vec<Vec<String>> = lines
        .map(line)
        .filter_map(|line| Some(line.strip_prefix("pirl ")?.to_owned()))
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    assert!(!commands.is_empty(), "{page} has no command");
    commands
}

/// Runs the commands of a page in order, with `--time` cut to seconds and settings that make networks tiny.
fn run(bench: &Bench, page: &str, but: &[&str]) {
    for command in commands(page) {
        if but.iter().any(|word| command.iter().any(|own| own == word)) {
            continue;
        }
        let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
        if let Some(at) = words.iter().position(|word| *word == "--time") {
            words[at + 1] = "2s";
        }
        if words[0] == "pretrain" {
            words.extend(["--set", "model.width=0.25", "--set", "train.batch_size=8"]);
            words.extend(["--set", "model.arch=resnet10", "--set", "loader.workers=1"]);
        }
        bench.pirl(&words).success();
    }
}

#[test]
fn the_first_run_is_as_written() {
    let bench = Bench::new();
    let raw = bench.path("raw");
    fs::create_dir(&raw).unwrap();
    for (split, images) in [("train", 64), ("t10k", 32)] {
        let header = |magic: u32, sizes: &[u32]| -> Vec<u8> {
            let words = [&[magic], sizes].concat();
            words.into_iter().flat_map(u32::to_be_bytes).collect()
        };
        let mut pixels = header(0x803, &[images, 28, 28]);
        pixels.extend((0..images * 784).map(|at| (at * 7 % 251) as u8));
        fs::write(raw.join(format!("{split}-images-idx3-ubyte")), pixels).unwrap();
        let mut labels = header(0x801, &[images]);
        labels.extend((0..images).map(|image| (image % 10) as u8));
        fs::write(raw.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    bench.images("photos", 40);
    run(&bench, "first-run.md", &["fetch"]);
    assert!(bench.path("runs/photos-knn/result.json").is_file());
    let report = bench.read("runs/photos/report.html");
    assert_eq!(report.matches("<td>top-1 ").count(), 3); // with raw pixels and the untrained network
    assert!(report.contains("<img alt=\"Map\""));
    let report = bench.read("runs/first/report.html");
    assert!(report.contains("nearest neighbours on res") && report.contains("<img alt=\"Map\""));
    assert!(bench.path("runs/first-knn/result.json").is_file());
}

#[test]
fn own_images_are_as_written() {
    let bench = Bench::new();
    bench.images("photos", 40);
    run(&bench, "own-images.md", &[]);
    for made in [
        "sheet.png",
        "runs/photos/report.html",
        "backbone.safetensors",
    ] {
        assert!(bench.path(made).is_file(), "{made}");
    }
}

#[test]
fn messages_that_are_explained_exist() {
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                *text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    for entry in fs::read_dir(docs().join("..")).unwrap() {
        let folder = entry.unwrap().path().join("src");
        if folder.is_dir() {
            sources(&folder, &mut text);
        }
    }
    // As they are printed: a string's line may end with a backslash.
    let lines = text.split("\\\n").map(str::trim_start);
    let text: String = lines.collect();
    let page = fs::read_to_string(docs().join("troubleshooting.md")).unwrap();
    let explained: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("- `")?.split_once("`: "))
        .map(|(message, _)| message)
        .collect();
    assert!(explained.len() > 10, "{explained:?}");
    for message in explained {
        assert!(text.contains(message), "no message has {message:?}");
    }
}

#[test]
fn the_book_has_every_page_and_every_link_leads_somewhere() {
    let contents = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    for entry in fs::read_dir(docs()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.extension().is_none_or(|ending| ending != "md") {
            continue;
        }
        let listed = contents.contains(&format!("({name})"));
        assert!(
            listed || name == "SUMMARY.md",
            "{name} is not in SUMMARY.md"
        );
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let target = docs().join(target);
            assert!(target.exists(), "{name} links to {}", target.display());
        }
    }
}
