//! Fashion-MNIST, from a Debian package or from its authors.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{get, hex_sha256, write_files};
use crate::DataError;

const NAME: &str = "Fashion-MNIST";
/// Where the Debian package `dataset-fashion-mnist` puts its files.
const DEBIAN: &str = "/usr/share/datasets/fashion-mnist";
/// Folders of the authors, the first that can be had.
const FOLDERS: [&str; 2] = [
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
];

struct Idx {
    name: &'static str,
    /// Length in bytes, as published.
    len: u64,
    /// Of what is unpacked, which is the same however it was packed.
    sha256: &'static str,
}

const FILES: [Idx; 4] = [
    Idx {
        name: "train-images-idx3-ubyte.gz",
        len: 26_421_880,
        sha256: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    },
    Idx {
        name: "train-labels-idx1-ubyte.gz",
        len: 29_515,
        sha256: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    Idx {
        name: "t10k-images-idx3-ubyte.gz",
        len: 4_422_102,
        sha256: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    },
    Idx {
        name: "t10k-labels-idx1-ubyte.gz",
        len: 5_148,
        sha256: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
];
/// In order of label, from <https://github.com/zalandoresearch/fashion-mnist>.
const CLASS_NAMES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Puts the four IDX files of Fashion-MNIST and their class names into `folder`, made if missing.
///
/// They are those of the Debian package `dataset-fashion-mnist` where it is installed, else its authors',
/// downloaded by the proxy that the environment names (`HTTPS_PROXY`, ...), with `progress` called with the bytes
/// that are here and the bytes in all. Nothing is written before every checksum is found right; then all files or
/// none. Returns where they came from.
///
/// # Errors
/// [`DataError::Fetch`] when they cannot be downloaded, or if built without the feature `download`, which says
/// how to get them; [`DataError::Io`].
pub fn fetch_fashion_mnist(
    folder: impl AsRef<Path>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<String, DataError> {
    let (mut files, from) = match installed(&FILES, Path::new(DEBIAN))? {
        Some(files) => (files, format!("the Debian package in {DEBIAN}")),
        None => download(&FILES, &FOLDERS, &mut get, progress)?,
    };
    let names = CLASS_NAMES.join("\n") + "\n";
    files.push(("class_names.txt", names.into_bytes()));
    write_files(folder.as_ref(), &files)?;
    Ok(from)
}

type Files = Vec<(&'static str, Vec<u8>)>;
type Get<'a> = dyn FnMut(&str, &mut dyn FnMut(u64)) -> Result<Vec<u8>, String> + 'a;

/// All of `wanted` from `folder`; `None` if one is not there.
fn installed(wanted: &[Idx], folder: &Path) -> Result<Option<Files>, DataError> {
    let paths = wanted
        .iter()
        .map(|file| (file.name, folder.join(file.name)));
    let paths: Vec<_> = paths.collect();
    if !paths.iter().all(|(_, path)| path.is_file()) {
        return Ok(None);
    }
    let read = |(name, path): (_, PathBuf)| {
        let bytes = fs::read(&path).map_err(DataError::io("read", &path))?;
        Ok((name, bytes))
    };
    paths
        .into_iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// All of `wanted` from the first of `folders` that has them right, and its address.
fn download(
    wanted: &[Idx],
    folders: &[&str],
    get: &mut Get<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Files, String), DataError> {
    let total = wanted.iter().map(|file| file.len).sum();
    let mut failures = Vec::new();
    for folder in folders {
        let mut before = 0;
        let files = wanted.iter().map(|file| {
            let url = format!("{folder}/{}", file.name);
            let bytes = get(&url, &mut |done| progress(before + done, total));
            let bytes = bytes.and_then(|bytes| check(file, bytes));
            before += file.len;
            Ok((
                file.name,
                bytes.map_err(|reason| format!("{url}: {reason}"))?,
            ))
        });
        match files.collect::<Result<_, String>>() {
            Ok(files) => return Ok((files, (*folder).to_owned())),
            Err(reason) => failures.push(reason),
        }
    }
    let names: Vec<&str> = wanted.iter().map(|file| file.name).collect();
    Err(DataError::Fetch {
        name: NAME,
        reason: format!(
            "{}; either `apt install dataset-fashion-mnist`, or get {} in another way, put them into a folder and \
             pack that",
            failures.join("; "),
            names.join(", ")
        ),
    })
}

/// `packed` if it is the file; otherwise what is wrong with it, in words.
fn check(file: &Idx, packed: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    // No more than any of them has: what came may be anything.
    let mut reader = GzDecoder::new(packed.as_slice()).take(100 << 20);
    let read = reader.read_to_end(&mut unpacked);
    read.map_err(|error| format!("{} bytes came that are not gzip: {error}", packed.len()))?;
    let sha256 = hex_sha256(&unpacked);
    match sha256 == file.sha256 {
        true => Ok(packed),
        false => Err(format!(
            "what came has the SHA-256 {sha256}, unpacked, and not {}",
            file.sha256
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn wanted() -> [Idx; 2] {
        [("a.gz", b"images".as_slice()), ("b.gz", b"labels")].map(|(name, bytes)| Idx {
            name,
            len: packed(bytes).len() as u64,
            sha256: String::leak(hex_sha256(bytes)),
        })
    }

    #[test]
    fn files_that_are_installed_are_copied_if_all_are_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.gz"), "a").unwrap();
        assert!(installed(&wanted(), folder.path()).unwrap().is_none());
        fs::write(folder.path().join("b.gz"), "b").unwrap();
        let files = installed(&wanted(), folder.path()).unwrap();
        let expected = [("a.gz", b"a".to_vec()), ("b.gz", b"b".to_vec())];
        assert_eq!(files.unwrap(), expected);
    }

    #[test]
    fn the_first_folder_with_the_right_files_is_taken() {
        let mut asked = Vec::new();
        let mut told = Vec::new();
        let mut get = |url: &str, progress: &mut dyn FnMut(u64)| {
            asked.push(url.to_owned());
            let bytes = match url {
                "http://one/a.gz" | "http://two/a.gz" => packed(b"images"),
                "http://two/b.gz" => packed(b"labels"),
                _ => return Err("404".to_owned()),
            };
            progress(bytes.len() as u64);
            Ok(bytes)
        };
        let wanted = wanted();
        let mut progress = |done, total| told.push((done, total));
        let folders = ["http://one", "http://two", "http://three"];
        let (files, from) = download(&wanted, &folders, &mut get, &mut progress).unwrap();
        assert_eq!(from, "http://two");
        assert_eq!(
            files,
            [("a.gz", packed(b"images")), ("b.gz", packed(b"labels"))]
        );
        assert_eq!(asked.len(), 4, "{asked:?}");
        let (first, total) = (wanted[0].len, wanted[0].len + wanted[1].len);
        assert_eq!(told, [(first, total), (first, total), (total, total)]);
    }

    #[test]
    fn what_is_not_the_file_is_named() {
        let mut get = |url: &str, _: &mut dyn FnMut(u64)| match url {
            "http://one/a.gz" => Ok(b"<html>sign in</html>".to_vec()),
            _ => Ok(packed(b"others")),
        };
        let folders = ["http://one", "http://two"];
        let error = download(&wanted(), &folders, &mut get, &mut |_, _| ()).unwrap_err();
        let error = error.to_string();
        for part in [
            "http://one/a.gz: 20 bytes came that are not gzip",
            "http://two/a.gz: what came has the SHA-256",
            &hex_sha256(b"others"),
            &hex_sha256(b"images"),
            "apt install dataset-fashion-mnist",
            "a.gz, b.gz",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
