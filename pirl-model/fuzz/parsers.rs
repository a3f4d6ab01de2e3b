//! The readers of weights, as functions that must survive any bytes: an error is as good as a result.
//! `tests/mutation.rs` runs these on mutated files, the fuzz targets on what libFuzzer makes up:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir pirl-model/fuzz pth -- -rss_limit_mb=1024 -timeout=20
//! ```
#![allow(dead_code)] // each target uses one

use std::fs;
use std::sync::LazyLock;

use pirl_model::{load_state_dict, read_backbone};
use tempfile::TempDir;

/// A folder of this process, for readers that open files.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a folder"));

/// A checkpoint of PyTorch, old or new.
pub(crate) fn pth(bytes: &[u8]) {
    let path = FOLDER.path().join("weights.pth");
    fs::write(&path, bytes).expect("a file");
    if let Err(error) = read_backbone(&path) {
        drop(error.to_string());
    }
}

/// An ONNX file.
pub(crate) fn onnx(bytes: &[u8]) {
    let path = FOLDER.path().join("weights.onnx");
    fs::write(&path, bytes).expect("a file");
    if let Err(error) = read_backbone(&path) {
        drop(error.to_string());
    }
}

/// A safetensors file.
pub(crate) fn safetensors(bytes: &[u8]) {
    let path = FOLDER.path().join("weights.safetensors");
    fs::write(&path, bytes).expect("a file");
    if let Err(error) = read_backbone(&path) {
        drop(error.to_string());
    }
    let _ = load_state_dict(&path);
}
