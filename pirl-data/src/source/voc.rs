use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::read_image_file;
use super::{RawSample, Source, read_class_names, voc_xml};
use crate::{DataError, Objects, Skipped};

/// The classes of PASCAL VOC 2007 and 2012, in the order of their labels.
const CLASSES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];
/// What the image of an annotation may be called, besides its name.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "JPG", "JPEG", "PNG"];

/// PASCAL VOC, or another detection data set in its layout: `JPEGImages`, `Annotations/*.xml` and
/// `ImageSets/Main/NAME.txt` with the name of an image a line.
///
/// Several folders become one source, in the order given and each in the order of its image set, as
/// VOC 2007 and 2012 are used together. Boxes become zero-based as detectron2 has them: 1 is taken
/// from `xmin` and `ymin`, which the files count from 1 with both ends included.
///
/// Class names are those of `class_names.txt`, one a line, when the first folder has it; otherwise
/// VOC's own 20 in alphabetical order when the annotations use no other; otherwise all names in the
/// annotations, of this image set or another, in sorted order. So the sets of one data set agree.
///
/// An object without a name, a class or a box that can be read is left out and listed in
/// [`Source::skipped`], and so is an image whose annotation is not XML. Whether boxes lie in their image
/// is checked when packing, when the image is decoded. An object without a `difficult` tag counts as
/// not difficult.
#[derive(Clone, Debug)]
pub struct Voc {
    folders: Vec<PathBuf>,
    split: String,
    images: Vec<Annotated>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
}

#[derive(Clone, Debug)]
struct Annotated {
    path: PathBuf,
    objects: Objects,
}

impl Voc {
    /// Reads the annotations of the image set `split` (`trainval`, `test`, ...) of `folders`.
    ///
    /// # Errors
    /// [`DataError::Io`] when an image set, an annotation or an image is missing or unreadable;
    /// [`DataError::Empty`] when an image set is empty or nothing in it is annotated;
    /// [`DataError::Format`] when `class_names.txt` has a name twice.
    pub fn open(folders: &[impl AsRef<Path>], split: &str) -> Result<Self, DataError> {
        let folders: Vec<PathBuf> = folders.iter().map(|f| f.as_ref().to_owned()).collect();
        let mut listed = Vec::new();
        for folder in &folders {
            for name in image_set(folder, split)? {
                listed.push((folder, name));
            }
        }
        let Some(first) = folders.first() else {
            return Err(DataError::Empty {
                path: PathBuf::new(),
                expected: "at least one folder in the layout of VOC",
            });
        };
        let class_names = class_names(first, &folders)?;
        let read: Vec<_> = listed
            .par_iter()
            .map(|(folder, name)| annotated(folder, name, &class_names))
            .collect::<Result<_, _>>()?;
        let mut images = Vec::with_capacity(read.len());
        let mut skipped = Vec::new();
        for (image, mut faults) in read {
            images.extend(image);
            skipped.append(&mut faults);
        }
        if images.iter().all(|image| image.objects.is_empty()) {
            return Err(DataError::Empty {
                path: set_path(first, split),
                expected: "no annotation of its images has an object that can be read",
            });
        }
        Ok(Self {
            folders,
            split: split.to_owned(),
            images,
            class_names,
            skipped,
        })
    }
}

impl Source for Voc {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let image = self.images.get(index).ok_or(DataError::Index {
            index,
            len: self.images.len(),
        })?;
        let name = image.path.display().to_string();
        Ok(RawSample {
            objects: Some(image.objects.clone()),
            ..read_image_file(&image.path, name, None)?
        })
    }

    fn describe(&self) -> String {
        let folders: Vec<String> = self
            .folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        format!("VOC folder {}, {} set", folders.join(", "), self.split)
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

fn set_path(folder: &Path, split: &str) -> PathBuf {
    folder.join("ImageSets/Main").join(format!("{split}.txt"))
}

/// The names in an image set.
fn image_set(folder: &Path, split: &str) -> Result<Vec<String>, DataError> {
    let path = set_path(folder, split);
    let text = std::fs::read_to_string(&path).map_err(DataError::io("read", &path))?;
    let names: Vec<String> = text
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    if names.is_empty() {
        return Err(DataError::Empty {
            path,
            expected: "the name of an image a line",
        });
    }
    Ok(names)
}

/// The class names of the data set, whatever the image set.
fn class_names(first: &Path, folders: &[PathBuf]) -> Result<Vec<String>, DataError> {
    let path = first.join("class_names.txt");
    if let Some(names) = read_class_names(&path)? {
        let distinct: BTreeSet<&String> = names.iter().collect();
        if distinct.len() != names.len() || names.is_empty() {
            return Err(DataError::Format {
                path,
                format: "class names",
                reason: "it is empty or has a name twice".to_owned(),
            });
        }
        return Ok(names);
    }
    let mut found = BTreeSet::new();
    for folder in folders {
        let folder = folder.join("Annotations");
        let files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(DataError::io("list", &folder))?;
        let names: Vec<BTreeSet<String>> = files
            .par_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "xml"))
            // A file that cannot be read names nothing; if it is of the image set, it is reported.
            .filter_map(|path| voc_xml::class_names(path).ok())
            .collect();
        found.extend(names.into_iter().flatten());
    }
    if found.iter().all(|name| CLASSES.contains(&name.as_str())) {
        return Ok(CLASSES.map(str::to_owned).to_vec());
    }
    Ok(found.into_iter().collect())
}

/// One image of the set, or none when its annotation is unreadable, and what was left out of it.
fn annotated(
    folder: &Path,
    name: &str,
    class_names: &[String],
) -> Result<(Option<Annotated>, Vec<Skipped>), DataError> {
    let annotation = folder.join("Annotations").join(format!("{name}.xml"));
    let images = folder.join("JPEGImages");
    let path = EXTENSIONS
        .iter()
        .map(|extension| images.join(format!("{name}.{extension}")))
        .find(|path| path.is_file())
        .ok_or_else(|| DataError::Io {
            action: "find",
            path: images.join(format!("{name}.jpg")),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "the image set names it, but it is not there, nor as .jpeg or .png",
            ),
        })?;
    let shown = annotation.display().to_string();
    let found = match voc_xml::objects(&annotation) {
        Ok(found) => found,
        Err(DataError::Format { reason, .. }) => {
            let reason = format!("its image is left out, since this is no annotation: {reason}");
            let skipped = vec![Skipped {
                name: shown,
                reason,
            }];
            return Ok((None, skipped));
        }
        Err(error) => return Err(error),
    };
    let mut objects = Objects::default();
    let mut skipped = Vec::new();
    for (number, object) in found.into_iter().enumerate() {
        let added = object.and_then(|object| {
            let label = class_names.iter().position(|known| *known == object.name);
            let label = label.and_then(|label| u32::try_from(label).ok());
            match label {
                Some(label) => Ok((object.bounds, label, object.difficult)),
                None => Err(format!("its class {:?} is unknown", object.name)),
            }
        });
        match added {
            Ok((bounds, label, difficult)) => objects.push(bounds, label, difficult),
            Err(reason) => skipped.push(Skipped {
                name: format!("{shown}, object {number}"),
                reason,
            }),
        }
    }
    Ok((Some(Annotated { path, objects }), skipped))
}
