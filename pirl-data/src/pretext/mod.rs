//! Pretext tasks: how the transformed view I^t comes from an image.

mod jigsaw;
pub(crate) mod permutation;
mod rotation;

use pirl_core::check;
use rand::Rng;

use crate::config::{DataConfig, PretextConfig, PretextKind, ViewConfig};
use crate::random::{Use, stream};
use crate::transform::{ImageView, Scratch};
use crate::{DataError, Image};

use jigsaw::Jigsaw;
pub use permutation::permutations;
use rotation::Rotation;

/// Makes I^t, the view whose representation should match the image's.
pub trait Pretext: Send + Sync {
    /// Views per image: `grid * grid` patches of a jigsaw, 1 of a rotation, 0 of none.
    fn views(&self) -> usize;

    /// Side of a view in pixels.
    fn view_size(&self) -> usize;

    /// Classes of the covariant task, which predicts the transformation; 0 when it cannot be predicted
    /// (a jigsaw of all orders).
    fn labels(&self) -> usize;

    /// Draws a transformation from `rng` and writes the views of `image` to `out`, patches in their new
    /// order: `(views, channels, view_size, view_size)` bytes, not yet normalised. Returns the label of the
    /// transformation, in `0..labels()`, or 0.
    ///
    /// # Errors
    /// [`DataError::Output`] when `out` has another length, [`DataError::ImageSize`] when the
    /// image's pixels do not fill it, [`DataError::Channels`] when the settings are for others.
    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError>;
}

/// The task that `pretext` describes.
///
/// `view` says how a jigsaw takes the crop that it cuts into patches, and what then happens to each
/// patch; for a rotation, how the view is made that is turned. A fixed set of permutations depends on
/// `seed` alone. For a jigsaw of a turned image the label is that of the jigsaw.
///
/// # Errors
/// [`DataError::Setting`] names the field whose value cannot work, such as `patch_size` for patches
/// larger than their cell.
pub fn build_pretext(
    pretext: &PretextConfig,
    data: &DataConfig,
    view: &ViewConfig,
    seed: u64,
) -> Result<Box<dyn Pretext>, DataError> {
    data.check()?;
    view.check()?;
    pretext.check()?;
    let turned = match pretext.kind {
        PretextKind::None => return Ok(Box::new(Nothing)),
        PretextKind::Rotation => {
            return Ok(Box::new(Rotation::new(ImageView::new(data, view)?)));
        }
        PretextKind::Jigsaw => false,
        PretextKind::JigsawRotation => true,
    };
    let cell = pretext.crop_size / pretext.grid;
    check(
        "patch_size",
        data.patch_size,
        data.patch_size <= cell,
        &format!(
            "must be at most {cell}, the side of a cell: crop_size = {} over grid = {}",
            pretext.crop_size, pretext.grid
        ),
    )?;
    let orders = permutations(
        pretext.grid * pretext.grid,
        pretext.permutations,
        &mut stream(seed, Use::Permutations, 0, 0),
    )?;
    Ok(Box::new(Jigsaw::new(pretext, data, view, orders, turned)))
}

/// NPID: no transformed view.
struct Nothing;

impl Pretext for Nothing {
    fn views(&self) -> usize {
        0
    }

    fn view_size(&self) -> usize {
        1
    }

    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        _: &Image,
        _: &mut dyn Rng,
        _: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        crate::transform::check_output(out, 0)?;
        Ok(0)
    }
}
