//! What the folder of a run says about it, as JSON.

use std::fs;
use std::io;
use std::path::Path;

use pirl_core::file;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TrainError};

/// What `name` in `folder` says; `None` where it is not there.
///
/// # Errors
/// [`TrainError::Io`]; [`TrainError::Checkpoint`] for a file that does not say `what`.
pub(crate) fn read<T: DeserializeOwned>(
    folder: &Path,
    name: &str,
    what: &str,
) -> Result<Option<T>> {
    let path = folder.join(name);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(TrainError::io("read", &path))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let reason = format!("it does not say {what}: {error}");
        TrainError::Checkpoint { path, reason }
    })
}

/// Writes `name` in `folder`, which must exist.
///
/// # Errors
/// [`TrainError::Io`].
pub(crate) fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = folder.join(name);
    let write = || file::write(&path, &serde_json::to_vec_pretty(value)?);
    write().map_err(TrainError::io("write", &path))
}
