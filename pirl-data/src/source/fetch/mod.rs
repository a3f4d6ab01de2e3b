//! Public data sets, put into a folder in the format their readers know.

mod cifar10;
#[cfg(feature = "download")]
mod download;
mod fashion_mnist;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use pirl_core::file;
use sha2::{Digest, Sha256};

use crate::DataError;

pub use cifar10::fetch_cifar10;
pub use fashion_mnist::fetch_fashion_mnist;

#[cfg(feature = "download")]
use download::get;

#[cfg(not(feature = "download"))]
fn get(_: &str, _: &mut dyn FnMut(u64)) -> Result<Vec<u8>, String> {
    Err("this program was built without the feature `download`".to_owned())
}

fn hex_sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes files into `folder`, made if missing: all are on the disk before the first has its name.
fn write_files(folder: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), DataError> {
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut aside = tempfile::Builder::new();
        let aside = aside.prefix(".unfinished-").tempdir_in(folder)?;
        for (name, bytes) in files {
            let mut file = File::create(aside.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        for (name, _) in files {
            fs::rename(aside.path().join(name), folder.join(name))?;
        }
        file::sync_folder(folder)
    };
    write().map_err(DataError::io("write the data set into", folder))
}
