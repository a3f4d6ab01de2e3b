//! VOC's folders and image sets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::layout::{Index, sub_folder};
use super::voc_xml::{self, Annotation};
use super::{Annotated, AnnotatedImage, label};
use crate::source::files::Tree;
use crate::source::{read_class_names, text};
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
const IMAGES: [&str; 6] = ["JPEGImages", "images", "Images", "imgs", "img", "image"];
const ANNOTATIONS: [&str; 8] = [
    "Annotations",
    "annotations",
    "annots",
    "Annots",
    "annotation",
    "xmls",
    "xml",
    "labels",
];
/// The image set of everything that is annotated.
const ALL: &str = "all";
const MAX_BYTES: u64 = 1 << 30;

/// A folder: its images and its annotations by name.
struct Folder {
    path: PathBuf,
    images: Index,
    annotations: Index,
    tree: Tree,
}

/// An image that a set names: it and its annotation, or what is missing.
type Listed = Result<(PathBuf, PathBuf), Skipped>;

pub(super) fn open(folders: &[PathBuf], split: &str) -> Result<Annotated, DataError> {
    let opened: Vec<Folder> = folders
        .iter()
        .map(|path| Folder::open(path))
        .collect::<Result<_, _>>()?;
    let Some(first) = folders.first() else {
        return Err(DataError::Empty {
            path: PathBuf::new(),
            expected: "at least one folder in the layout of VOC",
        });
    };
    let mut source = Annotated {
        describe: String::new(),
        images: Vec::new(),
        class_names: class_names(first, &opened)?,
        skipped: Vec::new(),
        notes: Vec::new(),
        passed_over: Default::default(),
    };
    let mut listed: Vec<Listed> = Vec::new();
    for folder in &opened {
        if split == ALL {
            listed.extend(folder.all());
            source.skipped.extend(folder.tree.skipped.iter().cloned());
            for (ending, count) in folder.tree.passed_over() {
                if ending != ".xml" {
                    *source.passed_over.entry(ending).or_default() += count;
                }
            }
        } else {
            listed.extend(folder.image_set(split)?);
        }
    }
    let read: Vec<_> = listed
        .into_par_iter()
        .map(|listed| match listed {
            Ok((image, file)) => {
                let annotation = voc_xml::read(&file);
                Ok((image, file, annotation))
            }
            Err(missing) => Err(missing),
        })
        .collect();
    for entry in read {
        match entry {
            Err(missing) => source.skipped.push(missing),
            Ok((image, file, Ok(annotation))) => source.add(image, &file, annotation),
            Ok((_, file, Err(DataError::Format { reason, .. }))) => source.skipped.push(Skipped {
                name: file.display().to_string(),
                reason: format!("its image is left out, since this cannot be read: {reason}"),
            }),
            Ok((_, file, Err(error))) => source.skipped.push(Skipped {
                name: file.display().to_string(),
                reason: format!("its image is left out: {error}"),
            }),
        }
    }
    let shown: Vec<String> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    source.describe = format!("VOC folder {}, {split} set", shown.join(", "));
    Ok(source)
}

impl Annotated {
    fn add(&mut self, path: PathBuf, file: &Path, annotation: Annotation) {
        let mut objects = Objects::default();
        for (number, object) in annotation.objects.into_iter().enumerate() {
            match label(&self.class_names, &object.name) {
                Some(label) => objects.push(object.bounds, label, object.difficult),
                None => self.skipped.push(Skipped {
                    name: format!("{}, object {number}", file.display()),
                    reason: format!("its class {:?} is not in class_names.txt", object.name),
                }),
            }
        }
        self.notes
            .extend(annotation.notes.into_iter().map(|reason| Skipped {
                name: file.display().to_string(),
                reason,
            }));
        self.images.push(AnnotatedImage {
            path,
            objects,
            size: annotation.size,
            fractions: false,
        });
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Self, DataError> {
        let (images, annotations) = (sub_folder(path, &IMAGES), sub_folder(path, &ANNOTATIONS));
        let tree = Tree::below(&images)?;
        let is_xml = |path: &&PathBuf| {
            path.extension()
                .is_some_and(|ending| ending.eq_ignore_ascii_case("xml"))
        };
        let annotations = if annotations == images {
            Index::new(&annotations, tree.others.iter().filter(is_xml))
        } else {
            let tree = Tree::below(&annotations)?;
            Index::new(&annotations, tree.others.iter().filter(is_xml))
        };
        Ok(Self {
            path: path.to_owned(),
            images: Index::new(&images, tree.images.iter()),
            annotations,
            tree,
        })
    }

    /// Every annotation with its image, and what has none of the other.
    fn all(&self) -> Vec<Listed> {
        let mut used = BTreeSet::new();
        let mut listed: Vec<Listed> = Vec::new();
        for file in self.annotations.files() {
            // The same sub-folders, or the same name, or the name that the file says.
            let inside = file.strip_prefix(&self.path).unwrap_or(file);
            let named = || {
                voc_xml::read(file)
                    .ok()
                    .and_then(|annotation| annotation.file)
            };
            let image = self.images.find(&inside.to_string_lossy());
            let image = match image {
                Some(image) => Some(image),
                None => named().and_then(|name| self.images.find(&name)),
            };
            listed.push(match image {
                Some(image) => {
                    used.insert(image.to_owned());
                    Ok((image.to_owned(), file.clone()))
                }
                None => Err(missing(
                    &file.display().to_string(),
                    "there is no image of this annotation",
                )),
            });
        }
        let unused = self
            .images
            .files()
            .iter()
            .filter(|image| !used.contains(*image));
        listed.extend(unused.map(|image| {
            Err(missing(
                &image.display().to_string(),
                "there is no annotation of this image",
            ))
        }));
        listed
    }

    fn image_set(&self, split: &str) -> Result<Vec<Listed>, DataError> {
        let path = self.set_path(split)?;
        let bytes = text::read_bytes(&path, MAX_BYTES, "image set")?;
        let text = text::decode(&bytes).map_err(|(line, reason)| DataError::List {
            path: path.clone(),
            line,
            reason,
        })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let listed: Vec<Listed> = lines.filter_map(|line| self.find(line)).collect();
        if listed.is_empty() {
            return Err(DataError::Empty {
                path,
                expected: "the name of an image a line",
            });
        }
        Ok(listed)
    }

    /// The file of an image set, by its name or its path.
    fn set_path(&self, split: &str) -> Result<PathBuf, DataError> {
        let sets = self.path.join("ImageSets");
        let usual = sets.join("Main").join(format!("{split}.txt"));
        let places = [
            usual.clone(),
            sets.join(format!("{split}.txt")),
            self.path.join(format!("{split}.txt")),
            PathBuf::from(split),
        ];
        match places.into_iter().find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => Err(DataError::Io {
                action: "find",
                path: usual,
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "no such image set; it may also be the path of a list, `all` for every \
                     annotation, or parts such as 80/20",
                ),
            }),
        }
    }

    /// What a line of an image set names; `None` when the line says that it is not of the set.
    fn find(&self, line: &str) -> Option<Listed> {
        let mut name = line;
        if self.images.find(line).is_none()
            && let Some((before, flag)) = line.rsplit_once(char::is_whitespace)
        {
            match flag {
                "-1" => return None,
                "0" | "1" => name = before.trim_end(),
                // `image.jpg image.xml`, as some tools write.
                _ if flag.to_ascii_lowercase().ends_with(".xml") => name = before.trim_end(),
                _ => {}
            }
        }
        let Some(image) = self.images.find(name) else {
            return Some(Err(missing(
                name,
                "the image set names it, but there is no such image",
            )));
        };
        Some(match self.annotations.find(name) {
            Some(file) => Ok((image.to_owned(), file.to_owned())),
            None => Err(missing(
                &image.display().to_string(),
                "there is no annotation of this image",
            )),
        })
    }
}

fn missing(name: &str, reason: &str) -> Skipped {
    Skipped {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The class names of the data set, whatever the image set.
fn class_names(first: &Path, folders: &[Folder]) -> Result<Vec<String>, DataError> {
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
        let names: Vec<BTreeSet<String>> = folder
            .annotations
            .files()
            .par_iter()
            // A file that cannot be read names nothing; if it is of the image set, it is reported.
            .filter_map(|path| voc_xml::read(path).ok())
            .map(|annotation| {
                annotation
                    .objects
                    .into_iter()
                    .map(|object| object.name)
                    .collect()
            })
            .collect();
        found.extend(names.into_iter().flatten());
    }
    if found.iter().all(|name| CLASSES.contains(&name.as_str())) {
        return Ok(CLASSES.map(str::to_owned).to_vec());
    }
    Ok(found.into_iter().collect())
}
