//! Help for the tests of the command line: a fresh folder each, tiny images, and quick settings.
#![allow(dead_code)] // each test file uses its share

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::Value;

/// A folder of a test's own, removed at its end.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

/// A network and settings that take a second: ResNet-18 of quarter width on 16 pixels.
pub(crate) const TINY: &str = r#"
base = "imagenet-resnet50-jigsaw"
[data]
image_size = 16
patch_size = 6
[transform.image]
scale = [0.3, 1.0]
[pretext]
crop_size = 24
[model]
arch = "resnet18"
width = 0.25
stem = "small"
[loss]
temperature = 0.1
negatives = 16
[bank]
dim = 16
init = "features"
[optim]
lr = 0.1
[train]
batch_size = 8
epochs = 3
[loader]
workers = 1
[log]
every = 1
[checkpoint]
every = 0
[eval]
resize = 16
batch_size = 16
"#;

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(bench.path("tiny.toml"), TINY).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `pirl`, run in the folder.
    pub(crate) fn pirl(&self, arguments: &[&str]) -> Assert {
        self.command(arguments).assert()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("pirl").unwrap();
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("RUST_LOG");
        command
    }

    /// `pirl` that must fail with exit code 1; what it says.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let assert = self.pirl(arguments).code(1);
        let output = assert.get_output();
        assert!(
            output.stdout.is_empty(),
            "a failure prints nothing to standard output"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `pirl` that must succeed; what it says on standard error.
    pub(crate) fn stderr(&self, arguments: &[&str]) -> String {
        let assert = self.pirl(arguments).success();
        String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
    }

    /// The text of a file.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// `pirl` with `--json`: the object it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let assert = self.pirl(&[arguments, &["--json"]].concat()).success();
        serde_json::from_slice(&assert.get_output().stdout).unwrap()
    }

    /// Writes `count` small PNG files in two classes.
    pub(crate) fn images(&self, name: &str, count: u32) {
        for index in 0..count {
            let class = ["bars", "rings"][index as usize % 2];
            let folder = self.path(name).join(class);
            fs::create_dir_all(&folder).unwrap();
            picture(index)
                .save(folder.join(format!("{index:04}.png")))
                .unwrap();
        }
    }

    /// A pack of `count` images called `name`.
    pub(crate) fn pack(&self, name: &str, count: u32) {
        let images = format!("{name}-images");
        self.images(&images, count);
        self.pirl(&[
            "data",
            "pack",
            "--format",
            "image-folder",
            "--input",
            &images,
            "--output",
            name,
        ])
        .success();
    }

    /// Arguments of a tiny run.
    pub(crate) fn pretrain<'a>(&self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec![
            "pretrain",
            "--recipe",
            "tiny.toml",
            "--data",
            "pack",
            "--out",
            out,
            "--seed",
            "3",
        ];
        arguments.extend(more);
        arguments
    }

    /// The losses of a run, bit for bit, with their steps.
    pub(crate) fn losses(&self, out: &str) -> Vec<(u64, u32)> {
        rows(&self.path(out))
            .iter()
            .map(|row| {
                let loss = row["loss"].as_f64().unwrap() as f32;
                (row["step"].as_u64().unwrap(), loss.to_bits())
            })
            .collect()
    }

    /// The checkpoints of a run, by name.
    pub(crate) fn checkpoints(&self, out: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(out).join("checkpoints")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// The lines of a run's metrics.
pub(crate) fn rows(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Bars or rings whose place and grey depend on `index`.
fn picture(index: u32) -> image::RgbImage {
    image::RgbImage::from_fn(20, 20, |x, y| {
        let (dx, dy) = (x.abs_diff(6 + index % 8), y.abs_diff(6 + index / 8 % 8));
        let inside = if index.is_multiple_of(2) {
            (x + index) % 5 < 2
        } else {
            (4..7).contains(&(dx * dx + dy * dy).isqrt())
        };
        let shade = if inside {
            255 - (index * 7 % 100) as u8
        } else {
            (index % 40) as u8
        };
        image::Rgb([shade, shade / 2, 255 - shade])
    })
}

/// `pirl eval PROBE` of the untrained tiny network on `pack`.
pub(crate) fn eval<'a>(probe: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = [
        "eval",
        probe,
        "--weights",
        "random",
        "--recipe",
        "tiny.toml",
        "--train",
        "pack",
        "--test",
        "pack",
    ];
    [&common[..], more].concat()
}
