//! Whether features fit into memory and on the disk, checked before hours are spent on them.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use pirl_core::memory;
use pirl_model::{Backbone, Layer};

use crate::error::{EvalError, Result};
use crate::extract::{Extraction, images_in_pass, read_features};

/// Bytes that the features of `images` images take, measured on a black image.
///
/// # Errors
/// [`EvalError::Model`] or [`EvalError::Tensor`] if the backbone cannot take images of that size.
pub fn feature_bytes(
    backbone: &dyn Backbone,
    extraction: &Extraction,
    images: usize,
) -> Result<u64> {
    let sizes = feature_sizes(backbone, extraction)?;
    let numbers: usize = sizes.iter().map(|(_, dim, _)| dim).sum();
    Ok((numbers * size_of::<f32>()) as u64 * images as u64)
}

/// For each layer, the number of features of an image, and how many of them belong to one channel.
pub(crate) fn feature_sizes(
    backbone: &dyn Backbone,
    extraction: &Extraction,
) -> Result<Vec<(Layer, usize, usize)>> {
    let found = read_features(backbone, &black(extraction, 1)?, extraction, |row| row)?;
    let sizes = found
        .iter()
        .map(|f| (f.layer().clone(), f.dim(), f.cells()));
    Ok(sizes.collect())
}

/// Images a second whose features the backbone computes, measured on a batch of black images.
///
/// # Errors
/// As [`feature_bytes`].
pub(crate) fn images_per_second(backbone: &dyn Backbone, extraction: &Extraction) -> Result<f64> {
    let count = images_in_pass(extraction.view.crop.pow(2)).min(extraction.batch_size);
    let images = black(extraction, count)?;
    // The first pass allocates the buffers.
    read_features(backbone, &black(extraction, 1)?, extraction, |row| row)?;
    let start = Instant::now();
    read_features(backbone, &images, extraction, |row| row)?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn black(extraction: &Extraction, count: usize) -> Result<Tensor> {
    let side = extraction.view.crop;
    let shape = (count, extraction.view.channels(), side, side);
    Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
}

/// Checks that features of `bytes` bytes fit into memory, and on the disk of `folder` if they are to
/// be written there. Where the system does not report what is free, the check passes.
///
/// # Errors
/// [`EvalError::Memory`] if they do not fit.
pub(crate) fn check_memory(bytes: u64, folder: Option<&Path>) -> Result<()> {
    // A list of features doubles as it grows; a file of them is put together in memory.
    let copies = if folder.is_some() { 3 } else { 2 };
    let fits = |place: String, needed: u64, free: Option<u64>| match free {
        Some(free) if free < needed => Err(EvalError::Memory {
            place,
            needed: needed >> 20,
            free: free >> 20,
        }),
        _ => Ok(()),
    };
    let needed = bytes.saturating_mul(copies);
    fits("in memory".to_owned(), needed, memory::free())?;
    match folder {
        None => Ok(()),
        Some(folder) => {
            let free = rustix::fs::statvfs(folder).ok();
            let free = free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            fits(format!("in {}", folder.display()), bytes, free)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let folder = tempfile::tempdir().unwrap();
        check_memory(1 << 10, Some(folder.path())).unwrap();
        let message = check_memory(1 << 60, None).unwrap_err().to_string();
        assert!(message.contains("2199023255552 MiB in memory"), "{message}");
    }
}
