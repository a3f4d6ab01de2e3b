//! Pretext tasks: how the transformed view I^t comes from an image.

mod jigsaw;
mod permutation;
mod rotation;

use rand::Rng;

use crate::config::{DataConfig, PretextConfig, PretextKind, Table, ViewConfig, side};
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

    /// Classes of the covariant task, which predicts the transformation; 0 when there is none to
    /// predict (a jigsaw of all orders).
    fn labels(&self) -> usize;

    /// Draws a transformation from `rng` and writes the views of `image` to `out`, as bytes yet to
    /// be normalised: `(views, 3, view_size, view_size)`, patches in their new order. Returns the label of the
    /// transformation, in `0..labels()`, or 0.
    ///
    /// # Errors
    /// [`DataError::Output`] when `out` has another length, [`DataError::ImageSize`] when the
    /// image's pixels do not fill it.
    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError>;
}

/// The task that `[pretext]` describes.
///
/// `view` is `[transform.patch]`: how the crop is taken that a jigsaw cuts into patches, and what
/// then happens to each; for a rotation, how the view is made that is turned. A fixed set of
/// permutations depends on `seed` alone. The label of a jigsaw of a turned image is that of the
/// jigsaw.
///
/// # Errors
/// [`DataError::Setting`] names the key whose value cannot work: patches larger than their cell,
/// more permutations than there are.
pub fn build_pretext(
    pretext: &PretextConfig,
    data: &DataConfig,
    view: &ViewConfig,
    seed: u64,
) -> Result<Box<dyn Pretext>, DataError> {
    data.check()?;
    view.check(Table::Patch)?;
    let turned = match pretext.kind {
        PretextKind::None => return Ok(Box::new(Nothing)),
        PretextKind::Rotation => {
            return Ok(Box::new(Rotation::new(ImageView::of(
                data,
                view,
                Table::Patch,
            )?)));
        }
        PretextKind::Jigsaw => false,
        PretextKind::JigsawRotation => true,
    };
    side("pretext.crop_size", pretext.crop_size)?;
    // 16 x 16 patches leave 16 pixels each of a 255-pixel crop; the labels fit a byte.
    if !(1..=16).contains(&pretext.grid) {
        return Err(DataError::Setting {
            key: "pretext.grid",
            reason: format!("{}; it must lie between 1 and 16", pretext.grid),
        });
    }
    let cell = pretext.crop_size / pretext.grid;
    if data.patch_size > cell {
        return Err(DataError::Setting {
            key: "data.patch_size",
            reason: format!(
                "{} pixels, but a cell has only {cell} (pretext.crop_size {} over pretext.grid {})",
                data.patch_size, pretext.crop_size, pretext.grid
            ),
        });
    }
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
