use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Encoding, RawSample, Source, Split, read_class_names};
use crate::{DataError, Skipped};

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
/// Looks for `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (`t10k-...` or `test-...` for the
/// test split), with or without `.gz`, with a dot before `idx`, with a name such as `emnist-letters-`
/// before, or in a folder of that name. Class names come from `class_names.txt` in the folder, one a
/// line; without it they are "0" to "9", or to the largest label. Where the names are as many as the
/// largest label and no label is 0, labels count from 1, as EMNIST's letters do.
#[derive(Clone, Debug)]
pub struct Idx {
    path: PathBuf,
    split: Split,
    pixels: Vec<u8>,
    labels: Vec<u8>,
    notes: Vec<Skipped>,
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
        let prefixes: &[&str] = match split {
            Split::Train => &["train"],
            Split::Test => &["t10k", "test"],
        };
        let images = find(folder, prefixes, "images", 3)?;
        let (dimensions, pixels) = read_idx(&images, IMAGES_MAGIC, 3)?;
        let labels_path = find(folder, prefixes, "labels", 1)?;
        let (label_dimensions, mut labels) = read_idx(&labels_path, LABELS_MAGIC, 1)?;
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
        let (least, most) = labels.iter().fold((u8::MAX, 0), |(least, most), label| {
            (least.min(*label), most.max(*label))
        });
        let class_names = read_class_names(&folder.join("class_names.txt"))?.unwrap_or_else(|| {
            let classes = CLASSES.max(usize::from(most) + 1);
            (0..classes).map(|class| class.to_string()).collect()
        });
        let mut notes = Vec::new();
        if least > 0 && usize::from(most) == class_names.len() {
            labels.iter_mut().for_each(|label| *label -= 1);
            notes.push(Skipped {
                name: labels_path.display().to_string(),
                reason: format!(
                    "its labels count from 1: {most} is {:?}",
                    class_names[usize::from(most) - 1]
                ),
            });
        }
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
            notes,
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

    fn notes(&self) -> &[Skipped] {
        &self.notes
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
fn find(folder: &Path, prefixes: &[&str], what: &str, rank: usize) -> Result<PathBuf, DataError> {
    let names = prefixes.iter().flat_map(|prefix| {
        ["-", "."].map(|before| format!("{prefix}-{what}{before}idx{rank}-ubyte"))
    });
    let names: Vec<String> = names.collect();
    for name in &names {
        for path in [
            folder.join(name),
            folder.join(name).join(name),
            folder.join(format!("{name}.gz")),
        ] {
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    // EMNIST has the name of the set before: emnist-letters-train-images-idx3-ubyte.
    let ends = |path: &PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        names
            .iter()
            .any(|known| name.ends_with(&format!("-{known}")))
    };
    let listed = std::fs::read_dir(folder).map_err(DataError::io("list", folder))?;
    let mut found: Vec<PathBuf> = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(ends)
        .collect();
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(DataError::Io {
            action: "find",
            path: folder.join(&names[0]),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "neither it nor its .gz is there, nor with a dot before idx",
            ),
        }),
        several => {
            let several: Vec<_> = several
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(bad(
                folder,
                format!(
                    "it has several sets, put each into a folder: {}",
                    several.join(", ")
                ),
            ))
        }
    }
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
