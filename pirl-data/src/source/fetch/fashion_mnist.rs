use std::fs;
use std::path::{Path, PathBuf};

use super::write_files;
use crate::DataError;

const NAME: &str = "Fashion-MNIST";
/// Where the Debian package `dataset-fashion-mnist` puts its files.
const DEBIAN: &str = "/usr/share/datasets/fashion-mnist";
const FILES: [&str; 4] = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
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
/// Copies them from the Debian package `dataset-fashion-mnist` where it is installed; otherwise
/// downloads them from the Hugging Face hub, if built with the feature `hub`. Returns a description
/// of where they came from.
///
/// # Errors
/// [`DataError::Fetch`] when neither way works, which says how to get them; [`DataError::Io`] when
/// `folder` cannot be written.
pub fn fetch_fashion_mnist(folder: impl AsRef<Path>) -> Result<String, DataError> {
    let folder = folder.as_ref();
    let installed: Vec<PathBuf> = FILES.iter().map(|f| Path::new(DEBIAN).join(f)).collect();
    if installed.iter().all(|file| file.is_file()) {
        let mut files = vec![class_names()];
        for (file, name) in installed.iter().zip(FILES) {
            files.push((name, fs::read(file).map_err(DataError::io("read", file))?));
        }
        write_files(folder, &files)?;
        return Ok(format!("the Debian package in {DEBIAN}"));
    }
    download(folder)
}

#[cfg(not(feature = "hub"))]
fn download(_: &Path) -> Result<String, DataError> {
    Err(DataError::Fetch {
        name: NAME,
        reason: format!(
            "{DEBIAN} does not have it and this program was built without the feature `hub`; \
             either `apt install dataset-fashion-mnist`, or build with `--features hub` to \
             download it, or put {} into a folder and pack that",
            FILES.join(", ")
        ),
    })
}

#[cfg(feature = "hub")]
fn download(folder: &Path) -> Result<String, DataError> {
    use candle_core::{DType, Tensor};

    let data =
        candle_datasets::vision::fashion_mnist::load().map_err(|error| DataError::Fetch {
            name: NAME,
            reason: format!("the download failed: {error}"),
        })?;
    // The hub's files come as f32 in 0..=1; times 255, rounded, they are the published bytes.
    let pixels = |images: &Tensor| -> Result<Vec<u8>, DataError> {
        let scaled = (images.flatten_all()? * 255.)?.round()?;
        Ok(scaled.to_dtype(DType::U8)?.to_vec1()?)
    };
    let labels = |labels: &Tensor| -> Result<Vec<u8>, DataError> {
        Ok(labels.flatten_all()?.to_dtype(DType::U8)?.to_vec1()?)
    };
    let files = [
        pixels(&data.train_images)?,
        labels(&data.train_labels)?,
        pixels(&data.test_images)?,
        labels(&data.test_labels)?,
    ];
    let mut written = vec![class_names()];
    for (name, bytes) in FILES.into_iter().zip(&files) {
        let dimensions: &[usize] = if name.contains("idx3") {
            &[bytes.len() / (28 * 28), 28, 28]
        } else {
            &[bytes.len()]
        };
        written.push((name, gzipped_idx(dimensions, bytes, folder)?));
    }
    write_files(folder, &written)?;
    Ok("the Hugging Face hub, zalando-datasets/fashion_mnist".to_owned())
}

#[cfg(feature = "hub")]
fn gzipped_idx(dimensions: &[usize], bytes: &[u8], folder: &Path) -> Result<Vec<u8>, DataError> {
    use std::io::Write;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut header = vec![0, 0, 8, dimensions.len() as u8];
    for &dimension in dimensions {
        header.extend_from_slice(&(dimension as u32).to_be_bytes());
    }
    encoder
        .write_all(&header)
        .and_then(|()| encoder.write_all(bytes))
        .and_then(|()| encoder.finish())
        .map_err(DataError::io("write", folder))
}

fn class_names() -> (&'static str, Vec<u8>) {
    (
        "class_names.txt",
        (CLASS_NAMES.join("\n") + "\n").into_bytes(),
    )
}
