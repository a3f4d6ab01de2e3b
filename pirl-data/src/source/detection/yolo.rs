//! YOLO's text files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::{Annotated, AnnotatedImage};
use crate::source::files::Tree;
use crate::source::{read_class_names, text};
use crate::{DataError, Objects, Skipped};

const FORMAT: &str = "YOLO annotation";
const MAX_BYTES: u64 = 64 << 20;

/// What is read of `data.yaml`.
#[derive(Deserialize)]
struct Yaml {
    names: Option<Names>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Numbered(BTreeMap<u32, String>),
}

pub(super) fn open(folder: &Path, split: Option<&str>) -> Result<Annotated, DataError> {
    let root = images_folder(folder, split)?;
    let tree = Tree::below(&root)?;
    if tree.images.is_empty() {
        return Err(DataError::Empty {
            path: root,
            expected: "images, with text files beside them or in labels in place of images",
        });
    }
    let mut source = Annotated {
        describe: format!("YOLO folder {}", root.display()),
        images: Vec::new(),
        class_names: class_names(folder, &root)?,
        skipped: tree.skipped.clone(),
        notes: Vec::new(),
        passed_over: tree.passed_over(),
    };
    let classes = source.class_names.len();
    let read: Vec<_> = tree
        .images
        .par_iter()
        .map(|image| {
            let path = root.join(image);
            let file = label_file(&path);
            let objects = file.as_deref().map(|file| objects(file, classes));
            (path, file, objects)
        })
        .collect();
    let mut bare = 0;
    for (path, file, objects) in read {
        let objects = match objects {
            Some(Ok(objects)) => objects,
            None => {
                bare += 1;
                Objects::default()
            }
            Some(Err(reason)) => {
                source.skipped.push(Skipped {
                    name: file.unwrap_or(path).display().to_string(),
                    reason: format!("its image is left out, since this cannot be read: {reason}"),
                });
                continue;
            }
        };
        source.images.push(AnnotatedImage {
            path,
            objects,
            size: None,
            fractions: true,
        });
    }
    if bare > 0 {
        source.notes.push(Skipped {
            name: root.display().to_string(),
            reason: format!("{bare} images have no text file, and so no objects"),
        });
    }
    Ok(source)
}

/// The folder of the images of a split.
fn images_folder(folder: &Path, split: Option<&str>) -> Result<PathBuf, DataError> {
    let images = folder.join("images");
    let Some(split) = split else {
        return Ok(if images.is_dir() {
            images
        } else {
            folder.to_owned()
        });
    };
    let places = [
        images.join(split),
        folder.join(split).join("images"),
        folder.join(split),
    ];
    match places.iter().find(|place| place.is_dir()) {
        Some(place) => Ok(place.clone()),
        None => Err(DataError::Io {
            action: "find",
            path: images.join(split),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("nor is there {}", folder.join(split).display()),
            ),
        }),
    }
}

/// The text file of an image: in the last folder `images` of its path replaced by `labels`, or beside it.
fn label_file(image: &Path) -> Option<PathBuf> {
    let beside = image.with_extension("txt");
    let parts: Vec<_> = beside.components().collect();
    let at = parts.iter().rposition(|part| part.as_os_str() == "images");
    let labels = at.map(|at| {
        let mut path = PathBuf::new();
        for (place, part) in parts.iter().enumerate() {
            if place == at {
                path.push("labels");
            } else {
                path.push(part);
            }
        }
        path
    });
    labels
        .into_iter()
        .chain([beside])
        .find(|path| path.is_file())
}

/// The names in a YAML file, or one a line in a text file, of the folder or of those above the images.
fn class_names(folder: &Path, root: &Path) -> Result<Vec<String>, DataError> {
    let inside = root.ancestors().take_while(|path| path.starts_with(folder));
    let above = folder.parent().filter(|path| !path.as_os_str().is_empty());
    let folders: Vec<&Path> = inside.chain(above).collect();
    for folder in &folders {
        let mut yaml: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(DataError::io("list", *folder))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"))
            .collect();
        yaml.sort();
        for path in yaml {
            if let Some(names) = names_in(&path)? {
                return Ok(names);
            }
        }
        for name in ["classes.txt", "obj.names", "class_names.txt"] {
            if let Some(names) = read_class_names(&folder.join(name))? {
                return Ok(names);
            }
        }
    }
    Err(DataError::Format {
        path: folder.to_owned(),
        format: "YOLO folder",
        reason: "it has no class names: put names into data.yaml, or one a line into classes.txt"
            .to_owned(),
    })
}

fn names_in(path: &Path) -> Result<Option<Vec<String>>, DataError> {
    let bad = |reason: String| DataError::Format {
        path: path.to_owned(),
        format: "YAML",
        reason,
    };
    let bytes = text::read_bytes(path, MAX_BYTES, "YAML")?;
    let text =
        text::decode(&bytes).map_err(|(line, reason)| bad(format!("line {line}: {reason}")))?;
    let yaml: Yaml = serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?;
    match yaml.names {
        None => Ok(None),
        Some(Names::List(names)) => Ok(Some(names)),
        Some(Names::Numbered(names)) => {
            let wrong = names.keys().zip(0..).find(|(number, due)| **number != *due);
            if let Some((number, due)) = wrong {
                return Err(bad(format!("names has no {due}, the next is {number}")));
            }
            Ok(Some(names.into_values().collect()))
        }
    }
}

/// The objects of a text file, their boxes as fractions.
fn objects(path: &Path, classes: usize) -> Result<Objects, String> {
    let bytes = text::read_bytes(path, MAX_BYTES, FORMAT).map_err(|error| error.to_string())?;
    let text = text::decode(&bytes).map_err(|(line, reason)| format!("line {line}: {reason}"))?;
    let mut objects = Objects::default();
    for (number, line) in text.lines().enumerate() {
        let parsed =
            object(line, classes).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        if let Some((label, bounds)) = parsed {
            objects.push(bounds, label, false);
        }
    }
    Ok(objects)
}

/// The class and the box of a line; `None` of an empty one.
fn object(line: &str, classes: usize) -> Result<Option<(u32, [f32; 4])>, String> {
    let mut words = line.split_whitespace();
    let Some(class) = words.next() else {
        return Ok(None);
    };
    // Some programs write classes as they write all numbers: "3.0".
    let label = class
        .parse::<f64>()
        .ok()
        .filter(|class| class.fract() == 0.0 && *class >= 0.0);
    let label = label.ok_or_else(|| format!("the class is {class:?}, not a number from 0"))?;
    if label >= classes as f64 {
        return Err(format!("the class is {label}, there are {classes} classes"));
    }
    let numbers: Vec<f32> = words
        .map(|word| match word.parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(format!("{word:?} is not a number")),
        })
        .collect::<Result<_, _>>()?;
    let bounds = match numbers.as_slice() {
        // A fifth number is the confidence of a detection.
        [x, y, width, height] | [x, y, width, height, _] => [
            x - width / 2.0,
            y - height / 2.0,
            x + width / 2.0,
            y + height / 2.0,
        ],
        corners if corners.len() >= 6 && corners.len() % 2 == 0 => {
            let (pairs, _) = corners.as_chunks::<2>();
            super::around(pairs.iter().copied())
        }
        other => {
            return Err(format!(
                "{} numbers behind the class, expected 4 (centre, width, height) or the corners of a \
                 polygon",
                other.len()
            ));
        }
    };
    // Rounding takes a box to the edge and a little beyond; pixels would be far beyond.
    if numbers.iter().any(|number| number.abs() > 1.5) {
        return Err("its numbers are no fractions of the image; expected 0 to 1".to_owned());
    }
    Ok(Some((label as u32, bounds)))
}
