use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{RawSample, Source, read_image_file};
use crate::DataError;

/// A folder of JPEG and PNG files.
///
/// A folder that holds only sub-folders is labelled: each sub-folder is a class, in order of name,
/// and everything below it belongs to it; a class may have no images. A folder with an image at its
/// top is not labelled, and [`ImageFolder::unlabelled`] reads any tree so. Files are found by
/// their extension (`.jpg`, `.jpeg`, `.png` in any case) and ordered by path; names that begin with
/// a dot are passed over, links are followed.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<(PathBuf, Option<u32>)>,
    class_names: Vec<String>,
}

impl ImageFolder {
    /// Lists the images below `root`, labelled when it holds class sub-folders and no image.
    ///
    /// # Errors
    /// [`DataError::Io`] when a folder cannot be listed, [`DataError::Empty`] without any image.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let mut folder = Self::unlabelled(root)?;
        if folder
            .files
            .iter()
            .any(|(path, _)| path.components().count() < 2)
        {
            return Ok(folder);
        }
        let mut classes = Vec::new();
        for entry in walk(&folder.root, 1) {
            let entry = entry.map_err(|error| list_error(&folder.root, error))?;
            if entry.file_type().is_dir() {
                classes.push(PathBuf::from(entry.file_name()));
            }
        }
        classes.sort();
        for (path, label) in &mut folder.files {
            let class = path
                .components()
                .next()
                .map(|c| PathBuf::from(c.as_os_str()));
            *label = class
                .and_then(|class| classes.binary_search(&class).ok())
                .and_then(|class| u32::try_from(class).ok());
        }
        folder.class_names = classes
            .iter()
            .map(|class| class.to_string_lossy().into_owned())
            .collect();
        Ok(folder)
    }

    /// Lists the images below `root` at any depth, without labels.
    ///
    /// # Errors
    /// As [`ImageFolder::open`].
    pub fn unlabelled(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        let mut files = Vec::new();
        for entry in walk(root, usize::MAX) {
            let entry = entry.map_err(|error| list_error(root, error))?;
            if entry.file_type().is_file() && is_image(entry.path()) {
                let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
                files.push((path.to_owned(), None));
            }
        }
        if files.is_empty() {
            return Err(DataError::Empty {
                path: root.to_owned(),
                expected: "a folder with .jpg, .jpeg or .png files in it or below it",
            });
        }
        files.sort();
        Ok(Self {
            root: root.to_owned(),
            files,
            class_names: Vec::new(),
        })
    }
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
}

fn walk(
    root: &Path,
    depth: usize,
) -> impl Iterator<Item = Result<walkdir::DirEntry, walkdir::Error>> {
    WalkDir::new(root)
        .follow_links(true)
        .min_depth(1)
        .max_depth(depth)
        .into_iter()
        .filter_entry(|entry| {
            entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
        })
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["jpg", "jpeg", "png"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

fn list_error(root: &Path, error: walkdir::Error) -> DataError {
    let path = error.path().unwrap_or(root).to_owned();
    let source = error
        .into_io_error()
        .unwrap_or_else(|| std::io::Error::other("a link leads back to a folder above it"));
    DataError::Io {
        action: "list",
        path,
        source,
    }
}
