//! Whether features fit, asked before hours are spent on them.

use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use pirl_model::Backbone;

use crate::error::{EvalError, Result};
use crate::extract::Extraction;

/// Bytes of the features of `images` images, found by reading those of a black one.
///
/// # Errors
/// [`EvalError::Model`] or [`EvalError::Tensor`] if the backbone cannot see such an image.
pub fn feature_bytes(
    backbone: &dyn Backbone,
    extraction: &Extraction,
    images: usize,
) -> Result<u64> {
    let side = extraction.view.crop;
    let device = backbone.parameters().var().device();
    let black = Tensor::zeros((1, 3, side, side), DType::F32, device)?;
    let mut numbers = 0;
    for (layer, map) in backbone.feature_maps(&black, &extraction.layers)? {
        numbers += extraction.pool.apply(layer, &map)?.0.len();
    }
    Ok((numbers * size_of::<f32>()) as u64 * images as u64)
}

/// Checks that features of `bytes` bytes fit into memory, and on the disk of `folder` if they are to
/// be kept there. Where the system does not tell how much is free, nothing is refused.
///
/// # Errors
/// [`EvalError::Room`].
pub fn check_room(bytes: u64, folder: Option<&Path>) -> Result<()> {
    // A list of features doubles as it grows; a file of them is put together in memory.
    let copies = if folder.is_some() { 3 } else { 2 };
    let fits = |place: String, needed: u64, free: Option<u64>| match free {
        Some(free) if free < needed => Err(EvalError::Room {
            place,
            needed: needed >> 20,
            free: free >> 20,
        }),
        _ => Ok(()),
    };
    let needed = bytes.saturating_mul(copies);
    fits("in memory".to_owned(), needed, free_memory())?;
    match folder {
        None => Ok(()),
        Some(folder) => {
            let free = rustix::fs::statvfs(folder).ok();
            let free = free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            fits(format!("in {}", folder.display()), bytes, free)
        }
    }
}

/// What Linux says is available without swapping; `None` elsewhere.
fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let folder = tempfile::tempdir().unwrap();
        check_room(1 << 10, Some(folder.path())).unwrap();
        let message = check_room(1 << 60, None).unwrap_err().to_string();
        assert!(message.contains("2199023255552 MiB in memory"), "{message}");
        assert!(free_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
