//! Where the images and the annotations of a data set lie.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::source::files::{Tree, has_image_ending};

/// Files by name: by their path below a folder without its ending, and by its last part alone where
/// only one file has it.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: Vec<PathBuf>,
    /// The place in `files`; `None` of a name that several files have.
    places: HashMap<String, Option<usize>>,
}

impl Index {
    /// Of files below `root`, which are given relative to it.
    pub(super) fn new<'a>(root: &Path, files: impl Iterator<Item = &'a PathBuf>) -> Self {
        let mut index = Self::default();
        for file in files {
            let place = index.files.len();
            index.files.push(root.join(file));
            let whole = key(&file.to_string_lossy());
            if let Some((_, last)) = whole.rsplit_once('/') {
                let alone = index.places.entry(last.to_owned());
                alone
                    .and_modify(|known| *known = None)
                    .or_insert(Some(place));
            }
            // A whole path is never taken for another's last part.
            index.places.insert(whole, Some(place));
        }
        index
    }

    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The file of this name, with or without ending and folders; of folders that are not there, the rest
    /// is looked for.
    pub(super) fn find(&self, name: &str) -> Option<&Path> {
        let name = name.trim().replace('\\', "/");
        let mut rest = name.trim_start_matches("./");
        loop {
            for name in [rest, &key(rest)] {
                if let Some(place) = self.places.get(name) {
                    return self.files.get((*place)?).map(PathBuf::as_path);
                }
            }
            (_, rest) = rest.split_once('/')?;
        }
    }
}

/// A name without the ending of an image or an annotation; slashes as they are here.
fn key(name: &str) -> String {
    let name = name.replace('\\', "/");
    let path = Path::new(&name);
    let known = has_image_ending(path)
        || path.extension().is_some_and(|ending| {
            ["xml", "txt"]
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known))
        });
    match name.rsplit_once('.') {
        Some((stem, _)) if known => stem.to_owned(),
        _ => name,
    }
}

/// The first of these sub-folders that is there, or the folder itself.
pub(super) fn sub_folder(folder: &Path, names: &[&str]) -> PathBuf {
    let found = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_dir());
    found.unwrap_or_else(|| folder.to_owned())
}

/// The images of a file of annotations: in `folder`, or in the first of `usual` that has one of them.
pub(super) fn images(
    folder: Option<&Path>,
    usual: &[PathBuf],
    some_name: Option<&str>,
) -> Result<(Tree, Index), DataError> {
    let indexed = |root: &Path| -> Result<(Tree, Index), DataError> {
        let tree = Tree::below(root)?;
        let index = Index::new(root, tree.images.iter());
        Ok((tree, index))
    };
    if let Some(folder) = folder {
        return indexed(folder);
    }
    for root in usual.iter().filter(|root| root.is_dir()) {
        let found = indexed(root)?;
        if some_name.is_none_or(|name| found.1.find(name).is_some()) {
            return Ok(found);
        }
    }
    let looked: Vec<_> = usual
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    Err(DataError::Io {
        action: "find",
        path: some_name.unwrap_or_default().into(),
        source: std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!(
                "it is in none of {}; name the folder of the images",
                looked.join(", ")
            ),
        ),
    })
}
