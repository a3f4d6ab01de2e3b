//! The view of the image itself, and the buffers for making views.

use rand::Rng;

use super::{Augment, Crop, Normalize, RandomResizedCrop, Resizer, resize, write_planes};
use crate::config::{DataConfig, ViewConfig};
use crate::stages::{Stage, Stopwatch};
use crate::{DataError, Image};

/// Buffers for making views. Keep one for each thread and reuse it: once they have grown, nothing is
/// allocated.
#[derive(Debug)]
pub struct Scratch {
    pub(crate) resizer: Resizer,
    /// The resized crop.
    pub(crate) crop: Image,
    /// A turned image, or one patch.
    pub(crate) part: Image,
    /// A second buffer for operations that cannot work in place.
    pub(crate) spare: Vec<u8>,
    /// The cell of the crop that each patch shows.
    pub(crate) order: Vec<usize>,
    pub(crate) trace: Trace,
    pub(crate) watch: Stopwatch,
}

/// Where in the image the last view comes from; for previews.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Quarters the image was turned by, counter-clockwise, before it was cropped.
    pub(crate) turned_before: u32,
    /// The part of the turned image that was resized to [`Scratch::crop`].
    pub(crate) crop: Option<Crop>,
    /// Quarters the resized crop was turned by.
    pub(crate) turned_after: u32,
    /// Left and top of each patch in the resized crop.
    pub(crate) corners: Vec<[usize; 2]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            resizer: Resizer::default(),
            crop: Image::empty(),
            part: Image::empty(),
            spare: Vec::new(),
            order: Vec::new(),
            trace: Trace::default(),
            watch: Stopwatch::default(),
        }
    }
}

/// The image's own view I: random resized crop, colour operations, flip.
#[derive(Clone, Debug)]
pub struct ImageView {
    size: usize,
    crop: RandomResizedCrop,
    augment: Augment,
    normalize: Normalize,
}

impl ImageView {
    /// The view that `data` and `view` describe.
    ///
    /// # Errors
    /// [`DataError::Setting`] names the field whose value cannot work.
    pub fn new(data: &DataConfig, view: &ViewConfig) -> Result<Self, DataError> {
        data.check()?;
        view.check()?;
        Ok(Self {
            size: data.image_size,
            crop: RandomResizedCrop {
                scale: view.scale,
                ratio: view.ratio,
            },
            augment: Augment::new(view),
            normalize: Normalize::new(data.mean, data.std)?,
        })
    }

    /// Side of the view in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The normalisation of its bytes, and of those of a pretext task's views with the same
    /// [`DataConfig`].
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// Makes a view of `image`, drawing from `rng`, and writes it to `out`: `(3, size, size)` bytes, not
    /// yet normalised.
    ///
    /// # Errors
    /// [`DataError::Output`] when `out` has another length, [`DataError::ImageSize`] when the
    /// image's pixels do not fill it.
    pub fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), DataError> {
        check_output(out, 3 * self.size * self.size)?;
        self.draw(image, rng, scratch)?;
        write_planes(&scratch.crop, out);
        scratch.watch.lap(Stage::Write);
        Ok(())
    }

    /// The same, into `scratch.crop`.
    pub(crate) fn draw(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
    ) -> Result<(), DataError> {
        let place = cut(
            &self.crop,
            image,
            self.size,
            rng,
            &mut scratch.resizer,
            &mut scratch.crop,
        )?;
        scratch.trace.crop = Some(place);
        scratch.watch.lap(Stage::Resample);
        self.augment
            .apply(&mut scratch.crop, rng, &mut scratch.spare);
        scratch.watch.lap(Stage::Photometric);
        Ok(())
    }
}

/// A random resized crop of `image` to a square of `size` pixels, into `out`. Returns where it was cut.
pub(crate) fn cut(
    crop: &RandomResizedCrop,
    image: &Image,
    size: usize,
    rng: &mut dyn Rng,
    resizer: &mut Resizer,
    out: &mut Image,
) -> Result<Crop, DataError> {
    image.check()?;
    let place = crop.draw(image.width, image.height, rng);
    resize(resizer, image, place, size, size, out)?;
    Ok(place)
}

pub(crate) fn check_output(out: &[u8], expected: usize) -> Result<(), DataError> {
    if out.len() == expected {
        return Ok(());
    }
    Err(DataError::Output {
        expected,
        found: out.len(),
    })
}
