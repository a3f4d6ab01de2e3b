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

/// Where the last views come from, for those who show them to people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Quarters by which the image was turned, counter-clockwise, before the crop was taken.
    pub turned_before: u32,
    /// The part of the image, before any turn, that was resized to [`Scratch::crop`]; `None` of a
    /// pretext task that does not record it.
    pub crop: Option<Crop>,
    /// Quarters by which the resized crop was turned, counter-clockwise.
    pub turned_after: u32,
    /// The patches of a jigsaw, in the order of its views.
    pub patches: Vec<Patch>,
}

/// A patch of a jigsaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The cell of the grid it was cut from, counted row by row from 0.
    pub cell: usize,
    /// Where it was cut from the resized crop.
    pub place: Crop,
}

impl Trace {
    /// Records a crop of `image` turned by `turned_before` quarters, of which nothing else is known yet.
    pub(crate) fn begin(&mut self, image: &Image, turned_before: u32, crop: Crop) {
        self.turned_before = turned_before;
        self.crop = Some(crop.turned_back(turned_before, image.width, image.height));
        self.turned_after = 0;
        self.patches.clear();
    }
}

impl Scratch {
    /// Where the last views came from.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The resized crop that the last views were cut or turned from; an [`ImageView`] is the crop itself.
    pub fn crop(&self) -> &Image {
        &self.crop
    }
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
            normalize: Normalize::new(data.mean.as_slice(), data.std.as_slice())?,
        })
    }

    /// Side of the view in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Channels of the view, and of the images it is of.
    pub fn channels(&self) -> usize {
        self.normalize.channels()
    }

    /// The normalisation of its bytes, and of those of a pretext task's views with the same
    /// [`DataConfig`].
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// Makes a view of `image`, drawing from `rng`, and writes it to `out`: `(channels, size, size)`
    /// bytes, not yet normalised.
    ///
    /// # Errors
    /// [`DataError::Output`] when `out` has another length, [`DataError::ImageSize`] when the
    /// image's pixels do not fill it, [`DataError::Channels`] when it has others.
    pub fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), DataError> {
        check_output(out, self.channels() * self.size * self.size)?;
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
        check_channels(self.channels(), image.channels)?;
        let place = cut(
            &self.crop,
            image,
            self.size,
            rng,
            &mut scratch.resizer,
            &mut scratch.crop,
        )?;
        scratch.trace.begin(image, 0, place);
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

pub(crate) fn check_channels(expected: usize, found: usize) -> Result<(), DataError> {
    match expected == found {
        true => Ok(()),
        false => Err(DataError::Channels { expected, found }),
    }
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
