//! Tells the program which version of Candle it is built with, from the lock file: the workspace's, or
//! the one that comes with the published package.

use std::path::Path;
use std::{env, fs};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let manifest = Path::new(&manifest);
    for folder in manifest.ancestors().take(2) {
        let lock = folder.join("Cargo.lock");
        let Ok(text) = fs::read_to_string(&lock) else {
            continue;
        };
        println!("cargo::rerun-if-changed={}", lock.display());
        let version = text
            .split_once("name = \"candle-core\"\nversion = \"")
            .and_then(|(_, rest)| rest.split('"').next());
        if let Some(version) = version {
            println!("cargo::rustc-env=PIRL_CANDLE_VERSION={version}");
            break;
        }
    }
}
