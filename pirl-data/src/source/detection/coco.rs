//! The JSON of COCO's instances.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Annotated, AnnotatedImage, layout};
use crate::{DataError, Objects, Skipped};

const FORMAT: &str = "COCO annotation";

/// What is read of the file; all else in it is passed over as it streams by.
#[derive(Deserialize)]
struct Instances {
    images: Vec<Image>,
    annotations: Vec<Instance>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: Id,
    file_name: String,
    #[serde(default)]
    width: Option<f64>,
    #[serde(default)]
    height: Option<f64>,
}

#[derive(Deserialize)]
struct Instance {
    image_id: Id,
    category_id: Id,
    #[serde(default)]
    bbox: Option<Vec<f64>>,
    #[serde(default)]
    iscrowd: Option<Flag>,
}

#[derive(Deserialize)]
struct Category {
    id: Id,
    name: String,
}

/// Numbers as COCO has them, or text.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Flag {
    Number(f64),
    Bool(bool),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

pub(super) fn open(file: &Path, images: Option<&Path>) -> Result<Annotated, DataError> {
    let bad = |reason: String| DataError::Format {
        path: file.to_owned(),
        format: FORMAT,
        reason,
    };
    let Instances {
        images: listed,
        annotations,
        mut categories,
    } = read(file).map_err(|error| match error {
        Failure::Io(error) => DataError::io("read", file)(error),
        Failure::Json(error) => bad(format!(
            "{error} (expected an object with images, annotations and categories)"
        )),
    })?;
    categories.sort_by(|a, b| a.id.cmp(&b.id));
    let distinct: BTreeSet<&String> = categories.iter().map(|category| &category.name).collect();
    if distinct.len() != categories.len() || categories.is_empty() {
        return Err(bad(
            "its categories are none, or have a name twice".to_owned()
        ));
    }
    let labels: HashMap<&Id, u32> = categories
        .iter()
        .map(|category| &category.id)
        .zip(0..)
        .collect();

    let mut source = Annotated {
        describe: format!("COCO file {}", file.display()),
        images: Vec::new(),
        class_names: categories
            .iter()
            .map(|category| category.name.clone())
            .collect(),
        skipped: Vec::new(),
        notes: Vec::new(),
        passed_over: BTreeMap::new(),
    };
    let usual = usual_folders(file);
    let some_name = listed.first().map(|image| image.file_name.as_str());
    let (tree, index) = layout::images(images, &usual, some_name)?;
    source.skipped.extend(tree.skipped);

    // By image id: the place in the list of images, objects, what is wrong with one of them.
    let mut found: HashMap<&Id, (Objects, Option<String>)> = HashMap::with_capacity(listed.len());
    for image in &listed {
        found.insert(&image.id, (Objects::default(), None));
    }
    for (number, instance) in annotations.iter().enumerate() {
        let Some((objects, fault)) = found.get_mut(&instance.image_id) else {
            source.skipped.push(Skipped {
                name: format!("annotation {number}"),
                reason: format!("its image {} is not in the file", instance.image_id),
            });
            continue;
        };
        let crowd = match instance.iscrowd {
            Some(Flag::Number(number)) => number != 0.0,
            Some(Flag::Bool(crowd)) => crowd,
            None => false,
        };
        let label = labels.get(&instance.category_id);
        match (label, instance.bbox.as_deref()) {
            (Some(label), Some(&[x, y, width, height])) => {
                let bounds = [x, y, x + width, y + height].map(|side| side as f32);
                objects.push(bounds, *label, crowd);
            }
            (None, _) => {
                let category = &instance.category_id;
                *fault = Some(format!(
                    "annotation {number}: its category {category} is not in the file"
                ));
            }
            (_, found) => {
                let found = found.map_or("none".to_owned(), |found| {
                    format!("{} numbers", found.len())
                });
                *fault = Some(format!(
                    "annotation {number}: its bbox is {found}, expected 4"
                ));
            }
        }
    }
    let mut seen = BTreeSet::new();
    for image in &listed {
        let mut left_out = |reason: String| {
            source.skipped.push(Skipped {
                name: image.file_name.clone(),
                reason,
            });
        };
        let Some((objects, fault)) = found.get(&image.id) else {
            continue;
        };
        if !seen.insert(&image.id) {
            left_out(format!("the id {} is another image's", image.id));
            continue;
        }
        if let Some(fault) = fault {
            left_out(format!(
                "its image is left out, since this cannot be read: {fault}"
            ));
            continue;
        }
        let Some(path) = index.find(&image.file_name) else {
            left_out("there is no such image".to_owned());
            continue;
        };
        let side = |side: Option<f64>| side.filter(|side| *side >= 1.0).map(|side| side as usize);
        source.images.push(AnnotatedImage {
            path: path.to_owned(),
            objects: objects.clone(),
            size: side(image.width).zip(side(image.height)),
            fractions: false,
        });
    }
    Ok(source)
}

enum Failure {
    Io(std::io::Error),
    Json(serde_json::Error),
}

/// The file as it streams by, without its byte-order mark.
fn read(file: &Path) -> Result<Instances, Failure> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file).map_err(Failure::Io)?);
    let start = reader.fill_buf().map_err(Failure::Io)?;
    if start.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    serde_json::from_reader(reader).map_err(|error| match error.io_error_kind() {
        Some(kind) => Failure::Io(kind.into()),
        None => Failure::Json(error),
    })
}

/// Where the images of this file usually are.
fn usual_folders(file: &Path) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let above = folder.parent().unwrap_or(Path::new(".."));
    let stem = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let set = stem.rsplit('_').next().unwrap_or_default().to_owned();
    let mut usual = Vec::new();
    for root in [folder, above] {
        usual.extend([
            root.join(&set),
            root.join("images").join(&set),
            root.join("images"),
        ]);
    }
    usual.extend([folder.to_owned(), above.to_owned()]);
    usual
        .into_iter()
        .map(|path| {
            if path.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                path
            }
        })
        .collect()
}
