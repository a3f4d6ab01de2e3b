use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Encoding, RawSample, Source, Split, read_class_names};
use crate::DataError;

const FORMAT: &str = "IDX";
/// Third byte 8: unsigned bytes; fourth: the number of dimensions (<http://yann.lecun.com/exdb/mnist/>).
const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;
/// Classes of MNIST and Fashion-MNIST, when the folder has no `class_names.txt`.
const CLASSES: usize = 10;
/// Images are held in memory: MNIST takes 47 MB, EMNIST 550 MB.
const MAX_BYTES: usize = 1 << 32;

/// MNIST, Fashion-MNIST and others in their format: a folder of IDX files, gzipped or not.
///
/// Looks for `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (`t10k-...` for the test
/// split), with or without `.gz`. Class names come from `class_names.txt` in the folder, one a
/// line, and are "0" to "9" without it.
#[derive(Clone, Debug)]
pub struct Idx {
    path: PathBuf,
    split: Split,
    pixels: Vec<u8>,
    labels: Vec<u8>,
    height: u32,
    width: u32,
    class_names: Vec<String>,
}

impl Idx {
    /// Reads one split into memory, a byte a pixel.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file is missing or unreadable, [`DataError::Format`] when its magic
    /// number, dimensions or length is wrong, [`DataError::Label`] for a label without a class.
    pub fn open(folder: impl AsRef<Path>, split: Split) -> Result<Self, DataError> {
        let folder = folder.as_ref();
        let prefix = match split {
            Split::Train => "train",
            Split::Test => "t10k",
        };
        let images = find(folder, &format!("{prefix}-images-idx3-ubyte"))?;
        let (dimensions, pixels) = read_idx(&images, IMAGES_MAGIC, 3)?;
        let labels_path = find(folder, &format!("{prefix}-labels-idx1-ubyte"))?;
        let (label_dimensions, labels) = read_idx(&labels_path, LABELS_MAGIC, 1)?;
        let (Some(&[count, height, width]), Some(&label_count)) =
            (dimensions.first_chunk::<3>(), label_dimensions.first())
        else {
            return Err(bad(&images, "its header is incomplete".to_owned()));
        };
        if count == 0 || height == 0 || width == 0 {
            return Err(bad(
                &images,
                format!("it holds {count} images of {height} x {width}"),
            ));
        }
        if count != label_count {
            return Err(bad(
                &labels_path,
                format!(
                    "{label_count} labels for the {count} images of {}",
                    images.display()
                ),
            ));
        }
        let class_names = read_class_names(&folder.join("class_names.txt"))?
            .unwrap_or_else(|| (0..CLASSES).map(|class| class.to_string()).collect());
        if let Some(index) = labels
            .iter()
            .position(|&l| usize::from(l) >= class_names.len())
        {
            return Err(DataError::Label {
                path: labels_path,
                index,
                label: labels.get(index).copied().map_or(-1, i64::from),
                classes: class_names.len(),
            });
        }
        Ok(Self {
            path: folder.to_owned(),
            split,
            pixels,
            labels,
            height,
            width,
            class_names,
        })
    }
}

impl Source for Idx {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let area = self.height as usize * self.width as usize;
        let (Some(label), Some(bytes)) = (
            self.labels.get(index),
            self.pixels.chunks_exact(area).nth(index),
        ) else {
            return Err(DataError::Index {
                index,
                len: self.labels.len(),
            });
        };
        Ok(RawSample {
            name: format!("{} image {index}", self.split),
            bytes: Cow::Borrowed(bytes),
            encoding: Encoding::Raw {
                height: self.height,
                width: self.width,
                channels: 1,
            },
            label: Some(u32::from(*label)),
            objects: None,
        })
    }

    fn describe(&self) -> String {
        format!("IDX folder {}, {} split", self.path.display(), self.split)
    }
}

fn bad(path: &Path, reason: String) -> DataError {
    DataError::Format {
        path: path.to_owned(),
        format: FORMAT,
        reason,
    }
}

/// The plain file if there is one, otherwise the gzipped one.
fn find(folder: &Path, name: &str) -> Result<PathBuf, DataError> {
    let plain = folder.join(name);
    if plain.is_file() {
        return Ok(plain);
    }
    let zipped = folder.join(format!("{name}.gz"));
    if zipped.is_file() {
        return Ok(zipped);
    }
    Err(DataError::Io {
        action: "find",
        path: plain,
        source: std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "neither it nor its .gz is there",
        ),
    })
}

/// The dimensions and the bytes of one IDX file, whose length must be exactly their product.
fn read_idx(path: &Path, magic: u32, rank: usize) -> Result<(Vec<u32>, Vec<u8>), DataError> {
    let file = BufReader::new(File::open(path).map_err(DataError::io("read", path))?);
    let mut reader: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut word = |what: &str| {
        let mut bytes = [0; 4];
        match reader.read_exact(&mut bytes) {
            Ok(()) => Ok(u32::from_be_bytes(bytes)),
            Err(error) => Err(bad(path, format!("reading {what}: {error}"))),
        }
    };
    let found = word("the magic number")?;
    if found != magic {
        return Err(bad(
            path,
            format!("magic number {found:#010x}, expected {magic:#010x}"),
        ));
    }
    let mut dimensions = Vec::with_capacity(rank);
    let mut expected = 1_usize;
    for _ in 0..rank {
        let dimension = word("the dimensions")?;
        dimensions.push(dimension);
        expected = expected
            .checked_mul(dimension as usize)
            .filter(|&bytes| bytes <= MAX_BYTES)
            .ok_or_else(|| bad(path, format!("dimensions {dimensions:?}... are too large")))?;
    }
    // Grown as bytes arrive, since the header's word alone is no reason to allocate.
    let mut data = Vec::new();
    reader
        .take(expected as u64 + 1)
        .read_to_end(&mut data)
        .map_err(|error| bad(path, format!("after {} bytes: {error}", data.len())))?;
    if data.len() != expected {
        let found = if data.len() < expected {
            "only"
        } else {
            "at least"
        };
        return Err(bad(
            path,
            format!(
                "dimensions {dimensions:?} need {expected} bytes, {found} {} are there",
                data.len()
            ),
        ));
    }
    Ok((dimensions, data))
}
