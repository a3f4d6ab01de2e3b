//! Files of results, whole or absent.

use std::path::Path;

use pirl_data::Image;

use crate::error::{ReportError, Result};
use crate::png::png;

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    pirl_core::file::write(path, bytes).map_err(|source| ReportError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Makes the folder, if it is not there.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| ReportError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Writes a picture as PNG, whole or not at all.
///
/// # Errors
/// As [`png`]; [`ReportError::Io`].
pub fn write_png(path: &Path, image: &Image) -> Result<()> {
    write(path, &png(image)?)
}
