use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::{Encoding, RawSample, Source, Split, read_class_names};
use crate::DataError;

const SIDE: usize = 32;
const AREA: usize = SIDE * SIDE;
const PIXELS: usize = 3 * AREA;

/// CIFAR-10 or CIFAR-100, binary version (<https://www.cs.toronto.edu/~kriz/cifar.html>).
///
/// The folder is the one the archive unpacks to, or the one it was unpacked in: `data_batch_1.bin` to
/// `data_batch_5.bin` and `test_batch.bin`, or `train.bin` and `test.bin`. CIFAR-100 is labelled by its 100 fine classes.
/// Class names come from `batches.meta.txt` or `fine_label_names.txt` when the folder has it, and
/// are the numbers otherwise.
#[derive(Clone, Debug)]
pub struct Cifar {
    path: PathBuf,
    name: &'static str,
    split: Split,
    records: Vec<u8>,
    record: usize,
    class_names: Vec<String>,
}

impl Cifar {
    /// Reads one split of CIFAR-10 into memory (150 MB for `train`).
    ///
    /// # Errors
    /// [`DataError::Io`] when a file is missing or unreadable, [`DataError::Format`] when its
    /// length is not a number of records, [`DataError::Label`] for a label without a class.
    pub fn ten(folder: impl AsRef<Path>, split: Split) -> Result<Self, DataError> {
        let files: &[&str] = match split {
            Split::Train => &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            Split::Test => &["test_batch.bin"],
        };
        Self::open(
            "CIFAR-10",
            &unpacked(
                folder.as_ref(),
                ["cifar-10-batches-bin", "cifar-10-batches-py"],
            ),
            split,
            files,
            1,
            10,
            "batches.meta.txt",
        )
    }

    /// Reads one split of CIFAR-100 into memory (150 MB for `train`).
    ///
    /// # Errors
    /// As [`Cifar::ten`].
    pub fn hundred(folder: impl AsRef<Path>, split: Split) -> Result<Self, DataError> {
        let files: &[&str] = match split {
            Split::Train => &["train.bin"],
            Split::Test => &["test.bin"],
        };
        Self::open(
            "CIFAR-100",
            &unpacked(folder.as_ref(), ["cifar-100-binary", "cifar-100-python"]),
            split,
            files,
            2,
            100,
            "fine_label_names.txt",
        )
    }

    /// A record is `label_bytes` bytes, of which the last is the label, and the planes of an image.
    fn open(
        name: &'static str,
        folder: &Path,
        split: Split,
        files: &[&str],
        label_bytes: usize,
        classes: usize,
        names_file: &str,
    ) -> Result<Self, DataError> {
        let record = label_bytes + PIXELS;
        let names_path = folder.join(names_file);
        let class_names = read_class_names(&names_path)?
            .unwrap_or_else(|| (0..classes).map(|class| class.to_string()).collect());
        if class_names.len() != classes {
            return Err(DataError::Format {
                path: names_path,
                format: name,
                reason: format!("{} class names, expected {classes}", class_names.len()),
            });
        }
        let mut records = Vec::new();
        for file in files {
            let path = folder.join(file);
            let pickle = path.with_extension("");
            if !path.exists() && pickle.is_file() {
                return Err(DataError::Format {
                    path: pickle,
                    format: name,
                    reason: "it is of the version for Python, pickled; the binary version is read \
                             (https://www.cs.toronto.edu/~kriz/cifar.html), which `pirl data fetch \
                             cifar10` also fetches"
                        .to_owned(),
                });
            }
            let bytes = std::fs::read(&path).map_err(DataError::io("read", &path))?;
            if bytes.is_empty() || bytes.len() % record != 0 {
                return Err(DataError::Format {
                    path,
                    format: name,
                    reason: format!(
                        "{} bytes are no number of {record}-byte records",
                        bytes.len()
                    ),
                });
            }
            for (index, bytes) in bytes.chunks_exact(record).enumerate() {
                let label = bytes.get(label_bytes - 1).copied().map_or(-1, i64::from);
                if usize::try_from(label).map_or(true, |label| label >= classes) {
                    return Err(DataError::Label {
                        path,
                        index,
                        label,
                        classes,
                    });
                }
            }
            records.extend_from_slice(&bytes);
        }
        Ok(Self {
            path: folder.to_owned(),
            name,
            split,
            records,
            record,
            class_names,
        })
    }
}

/// The folder that an archive was unpacked to, if `folder` is the one around it.
fn unpacked(folder: &Path, names: [&str; 2]) -> PathBuf {
    let mut inner = names.into_iter().map(|name| folder.join(name));
    inner
        .find(|inner| inner.is_dir())
        .unwrap_or_else(|| folder.to_owned())
}

impl Source for Cifar {
    fn len(&self) -> usize {
        self.records.len() / self.record
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let record = self.records.chunks_exact(self.record).nth(index);
        let Some((label, planes)) = record
            .and_then(|record| record.split_last_chunk::<PIXELS>())
            .and_then(|(labels, planes)| Some((*labels.last()?, planes)))
        else {
            return Err(DataError::Index {
                index,
                len: self.len(),
            });
        };
        let (red, rest) = planes.split_at(AREA);
        let (green, blue) = rest.split_at(AREA);
        let pixels = red.iter().zip(green).zip(blue);
        Ok(RawSample {
            name: format!("{} image {index}", self.split),
            bytes: Cow::Owned(pixels.flat_map(|((r, g), b)| [*r, *g, *b]).collect()),
            encoding: Encoding::Raw {
                height: SIDE as u32,
                width: SIDE as u32,
                channels: 3,
            },
            label: Some(u32::from(label)),
            objects: None,
        })
    }

    fn describe(&self) -> String {
        format!(
            "{} folder {}, {} split",
            self.name,
            self.path.display(),
            self.split
        )
    }
}
