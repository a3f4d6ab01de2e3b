use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{Tree, read_image_file};
use super::{Labels, RawSample, Source, stamp_file};
use crate::{DataError, Skipped};

/// Names that the parts of a data set have, by which a folder of them is told from one of classes.
const PARTS: [&str; 8] = [
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "eval",
];

/// A folder of image files.
///
/// A folder that holds only sub-folders is labelled: each sub-folder is a class, in order of name,
/// and everything below it belongs to it; a class may have no images. A folder whose images all lie at
/// its top is not labelled. Where images lie beside sub-folders of images [`Labels`] says which is
/// meant.
///
/// Files are taken for images by their ending (`.jpg`, `.png`, `.webp`, `.bmp`, `.tif`, `.gif`, `.ppm`,
/// `.qoi` and their variants, in any case; without one by their first bytes), read by their content,
/// and ordered by path. Links are followed; names that begin with a dot and folders of systems
/// (`__MACOSX`, `@eaDir`, `lost+found` and the like) are passed over.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<(PathBuf, Option<u32>)>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
    notes: Vec<Skipped>,
    passed_over: BTreeMap<String, usize>,
}

impl ImageFolder {
    /// Lists the images below `root`, with [`Labels::Auto`].
    ///
    /// # Errors
    /// [`DataError::Io`] when `root` cannot be listed; [`DataError::Empty`] without any image;
    /// [`DataError::Stray`] when it cannot be told whether sub-folders are classes.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::labelled(root, Labels::Auto)
    }

    /// Lists the images below `root`, sub-folders being classes as `labels` says.
    ///
    /// # Errors
    /// As [`ImageFolder::open`].
    pub fn labelled(root: impl AsRef<Path>, labels: Labels) -> Result<Self, DataError> {
        let root = root.as_ref();
        let mut tree = Tree::below(root)?;
        let passed_over = tree.passed_over();
        if tree.images.is_empty() {
            return Err(DataError::Empty {
                path: root.to_owned(),
                expected: "a folder with .jpg, .png, .webp, .bmp, .tif, .gif, .ppm or .qoi files in it \
                           or below it",
            });
        }
        let at_top = |path: &PathBuf| path.components().count() < 2;
        let strays: Vec<_> = tree.images.iter().filter(|path| at_top(path)).collect();
        let is_labelled = match labels {
            Labels::None => false,
            Labels::Folders => true,
            Labels::Auto if strays.is_empty() => true,
            Labels::Auto if strays.len() == tree.images.len() => false,
            Labels::Auto => {
                return Err(DataError::Stray {
                    path: root.to_owned(),
                    count: strays.len(),
                    first: strays
                        .first()
                        .map(|path| path.display().to_string())
                        .unwrap_or_default(),
                });
            }
        };
        let mut folder = Self {
            root: root.to_owned(),
            files: Vec::with_capacity(tree.images.len()),
            class_names: Vec::new(),
            skipped: std::mem::take(&mut tree.skipped),
            notes: Vec::new(),
            passed_over,
        };
        if !is_labelled {
            folder.files = tree.images.into_iter().map(|path| (path, None)).collect();
            return Ok(folder);
        }
        let classes: Vec<PathBuf> = classes(root, &tree)?.into_iter().collect();
        for path in tree.images {
            let class = path
                .components()
                .next()
                .map(|c| PathBuf::from(c.as_os_str()));
            let label = class
                .filter(|_| !at_top(&path))
                .and_then(|class| classes.binary_search(&class).ok())
                .and_then(|class| u32::try_from(class).ok());
            match label {
                Some(_) => folder.files.push((path, label)),
                None => folder.skipped.push(Skipped {
                    name: path.display().to_string(),
                    reason: "it lies in no class folder".to_owned(),
                }),
            }
        }
        folder.class_names = classes
            .iter()
            .map(|class| class.to_string_lossy().into_owned())
            .collect();
        folder.doubt_classes();
        Ok(folder)
    }

    /// Notes when the sub-folders look like something else than classes.
    fn doubt_classes(&mut self) {
        let part = |name: &String| PARTS.contains(&name.to_ascii_lowercase().as_str());
        let reason = match self.class_names.as_slice() {
            [only] => format!(
                "one class only, {only:?}: if it is a folder around the images, pack {}",
                self.root.join(only).display()
            ),
            names if names.iter().all(part) => format!(
                "the classes are {}: if they are parts of the set, pack each by itself, with --split {}",
                names.join(", "),
                names.first().map_or("train", String::as_str)
            ),
            _ => return,
        };
        self.notes.push(Skipped {
            name: self.root.display().to_string(),
            reason,
        });
    }
}

/// The sub-folders of the root that are no system's, those without images included.
fn classes(root: &Path, tree: &Tree) -> Result<BTreeSet<PathBuf>, DataError> {
    let below = tree.images.iter().chain(&tree.others);
    let mut classes: BTreeSet<PathBuf> = below
        .filter(|path| path.components().count() > 1)
        .filter_map(|path| path.components().next())
        .map(|class| PathBuf::from(class.as_os_str()))
        .collect();
    for entry in std::fs::read_dir(root).map_err(DataError::io("list", root))? {
        let entry = entry.map_err(DataError::io("list", root))?;
        let name = entry.file_name();
        // Links are followed, to a folder as well.
        if !super::files::is_system(name.as_encoded_bytes()) && entry.path().is_dir() {
            classes.insert(name.into());
        }
    }
    Ok(classes)
}

impl Source for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let (path, label) = self.files.get(index).ok_or(DataError::Index {
            index,
            len: self.files.len(),
        })?;
        let name = path.to_string_lossy().into_owned();
        read_image_file(&self.root.join(path), name, *label)
    }

    fn describe(&self) -> String {
        format!("image folder {}", self.root.display())
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn notes(&self) -> &[Skipped] {
        &self.notes
    }

    fn passed_over(&self) -> BTreeMap<String, usize> {
        self.passed_over.clone()
    }

    fn stamp(&self, index: usize) -> u128 {
        match self.files.get(index) {
            Some((path, label)) => stamp_file(&self.root.join(path), *label, None),
            None => 0,
        }
    }
}
