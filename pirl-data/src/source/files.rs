//! What lies in a folder: images, files that are none, and what cannot be looked at.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::RawSample;
use crate::{DataError, Skipped};

/// Endings of files that are taken for images; what they are, and whether it is read, is found from their content.
const IMAGES: [&str; 25] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm",
    "pbm", "pnm", "pam", "qoi", "jxl", "avif", "heic", "heif", "hif", "jp2", "j2k", "jpx",
];
/// Endings of images that cannot be read: that they are left out is said of each.
const UNREAD: [&str; 16] = [
    "svg", "svgz", "ico", "tga", "psd", "exr", "hdr", "dds", "dcm", "cr2", "cr3", "nef", "arw",
    "dng", "orf", "rw2",
];
/// Folders that systems and programs put beside a user's own.
const SYSTEM: [&str; 9] = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
    "@Recycle",
];

/// The files below a folder, in order of their paths, which are relative to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    /// Those taken for images.
    pub(super) images: Vec<PathBuf>,
    /// All others.
    pub(super) others: Vec<PathBuf>,
    /// Images of formats that are not read, links to nothing, folders that cannot be listed.
    pub(super) skipped: Vec<Skipped>,
}

impl Tree {
    /// # Errors
    /// [`DataError::Io`] when `root` itself cannot be listed.
    pub(super) fn below(root: &Path) -> Result<Self, DataError> {
        std::fs::read_dir(root).map_err(DataError::io("list", root))?;
        let mut tree = Self::default();
        let walk = WalkDir::new(root).follow_links(true).min_depth(1);
        let entries = walk.into_iter().filter_entry(|entry| {
            entry.depth() == 0 || !is_system(entry.file_name().as_encoded_bytes())
        });
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_type().is_file() => {
                    let path = entry.path();
                    let inside = path.strip_prefix(root).unwrap_or(path).to_owned();
                    tree.sort(path, inside);
                }
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(root);
                    let inside = path.strip_prefix(root).unwrap_or(path);
                    tree.skipped.push(Skipped {
                        name: inside.display().to_string(),
                        reason: walk_error(&error),
                    });
                }
            }
        }
        tree.images.sort();
        tree.others.sort();
        tree.skipped.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tree)
    }

    fn sort(&mut self, path: &Path, inside: PathBuf) {
        if is_image(path) {
            self.images.push(inside);
            return;
        }
        let ending = ending(path);
        if UNREAD.contains(&ending.as_str()) {
            self.skipped.push(Skipped {
                name: inside.display().to_string(),
                reason: format!("images in .{ending} are not read: turn it into a PNG or a JPEG"),
            });
        } else {
            self.others.push(inside);
        }
    }

    /// How many files are no images, by their endings.
    pub(super) fn passed_over(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for path in &self.others {
            *counts.entry(shown_ending(path)).or_default() += 1;
        }
        counts
    }
}

/// Names that begin with a dot, and folders and files of systems.
pub(super) fn is_system(name: &[u8]) -> bool {
    name.starts_with(b".") || SYSTEM.iter().any(|known| known.as_bytes() == name)
}

/// Whether a file is taken for an image: by its ending, or, without one, by its first bytes.
pub(super) fn is_image(path: &Path) -> bool {
    match path.extension() {
        Some(_) => has_image_ending(path),
        None => {
            let mut first = [0; 32];
            let read = File::open(path).and_then(|mut file| file.read(&mut first));
            read.is_ok_and(|count| crate::decode::sniff(&first[..count]).is_some())
        }
    }
}

/// Whether a name ends as images' names do.
pub(super) fn has_image_ending(path: &Path) -> bool {
    IMAGES.contains(&ending(path).as_str())
}

/// What follows the last dot, in small letters; empty when nothing does.
fn ending(path: &Path) -> String {
    let ending = path.extension().unwrap_or_default();
    ending.to_string_lossy().to_ascii_lowercase()
}

/// The same with its dot, for a report.
pub(crate) fn shown_ending(path: &Path) -> String {
    match ending(path) {
        ending if ending.is_empty() => "no ending".to_owned(),
        ending => format!(".{ending}"),
    }
}

fn walk_error(error: &walkdir::Error) -> String {
    match error.io_error() {
        Some(io) if io.kind() == std::io::ErrorKind::NotFound => "a link to nothing".to_owned(),
        Some(io) => format!("cannot be listed: {io}"),
        None => "a link that leads back to a folder above it".to_owned(),
    }
}

/// Reads an image file. Its encoding is found from its first bytes, not from its name.
///
/// # Errors
/// [`DataError::Decode`] when there is no such file, it must not be read, or it is no image;
/// [`DataError::Io`] when reading fails otherwise, which other files will not fare better with.
pub(super) fn read_image_file(
    path: &Path,
    name: String,
    label: Option<u32>,
) -> Result<RawSample<'static>, DataError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            use std::io::ErrorKind::{InvalidInput, IsADirectory, NotFound, PermissionDenied};
            let own = [InvalidInput, IsADirectory, NotFound, PermissionDenied];
            return Err(if own.contains(&error.kind()) {
                let reason = format!("cannot be read: {error}");
                DataError::Decode { name, reason }
            } else {
                DataError::io("read", path)(error)
            });
        }
    };
    image_bytes(Cow::Owned(bytes), name, label)
}

/// The sample of the bytes of an image file.
///
/// # Errors
/// [`DataError::Decode`] when they are of no format that is read.
pub(super) fn image_bytes(
    bytes: Cow<'_, [u8]>,
    name: String,
    label: Option<u32>,
) -> Result<RawSample<'_>, DataError> {
    match crate::decode::sniff(&bytes) {
        Some(encoding) => Ok(RawSample {
            name,
            bytes,
            encoding,
            label,
            objects: None,
        }),
        None => Err(DataError::Decode {
            name,
            reason: crate::decode::unknown(&bytes),
        }),
    }
}
