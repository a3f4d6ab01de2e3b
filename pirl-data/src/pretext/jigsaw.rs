//! Patches of the image in a random order (Noroozi and Favaro, arXiv:1603.09246).

use rand::Rng;

use super::Pretext;
use crate::config::{DataConfig, PretextConfig, ViewConfig};
use crate::random::{below, shuffle};
use crate::stages::Stage;
use crate::transform::{
    Augment, Crop, Patch, RandomResizedCrop, Scratch, check_channels, check_output, cut,
    quarter_turns, write_planes,
};
use crate::{DataError, Image};

/// A random crop, of the turned image when asked, cut into `grid * grid` cells; from each cell a
/// patch at a random place, with colours and mirror drawn for it alone.
pub(crate) struct Jigsaw {
    grid: usize,
    crop_size: usize,
    cell: usize,
    patch_size: usize,
    channels: usize,
    crop: RandomResizedCrop,
    augment: Augment,
    /// The fixed set of orders; empty for all there are.
    orders: Vec<Vec<u8>>,
    turned: bool,
}

impl Jigsaw {
    /// The settings have been checked: `patch_size <= crop_size / grid`.
    pub(crate) fn new(
        pretext: &PretextConfig,
        data: &DataConfig,
        view: &ViewConfig,
        orders: Vec<Vec<u8>>,
        turned: bool,
    ) -> Self {
        Self {
            grid: pretext.grid,
            crop_size: pretext.crop_size,
            cell: pretext.crop_size / pretext.grid,
            patch_size: data.patch_size,
            channels: data.channels,
            crop: RandomResizedCrop {
                scale: view.scale,
                ratio: view.ratio,
            },
            augment: Augment::new(view),
            orders,
            turned,
        }
    }

    /// Fills `order` with the cell that each view shows, cells counted row by row; returns the
    /// label.
    fn draw_order(&self, rng: &mut dyn Rng, order: &mut Vec<usize>) -> u32 {
        order.clear();
        if self.orders.is_empty() {
            order.extend(0..self.views());
            shuffle(rng, order);
            return 0;
        }
        let label = below(rng, self.orders.len());
        order.extend(self.orders[label].iter().copied().map(usize::from));
        label as u32
    }

    /// The patch of a cell, and where it was cut: VISSL draws its offset from `0..cell - patch_size`.
    fn cut_patch(&self, whole: &Image, cell: usize, rng: &mut dyn Rng, patch: &mut Image) -> Crop {
        let room = (self.cell - self.patch_size).max(1);
        let top = cell / self.grid * self.cell + below(rng, room);
        let left = cell % self.grid * self.cell + below(rng, room);
        let (side, channels) = (self.patch_size, whole.channels);
        patch.width = side;
        patch.height = side;
        patch.channels = channels;
        patch.pixels.clear();
        for row in whole
            .pixels
            .chunks_exact(whole.width * channels)
            .skip(top)
            .take(side)
        {
            patch
                .pixels
                .extend_from_slice(&row[left * channels..(left + side) * channels]);
        }
        Crop {
            left,
            top,
            width: side,
            height: side,
        }
    }
}

impl Pretext for Jigsaw {
    fn views(&self) -> usize {
        self.grid * self.grid
    }

    fn view_size(&self) -> usize {
        self.patch_size
    }

    fn labels(&self) -> usize {
        self.orders.len()
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        let patch_len = self.channels * self.patch_size * self.patch_size;
        check_output(out, self.views() * patch_len)?;
        check_channels(self.channels, image.channels)?;
        let Scratch {
            resizer,
            crop: whole,
            part,
            spare,
            order,
            trace,
            watch,
        } = scratch;
        let (from, turns) = if self.turned {
            image.check()?;
            let turns = below(rng, 4) as u32;
            quarter_turns(image, turns, part);
            (&*part, turns)
        } else {
            (image, 0)
        };
        let place = cut(&self.crop, from, self.crop_size, rng, resizer, whole)?;
        trace.begin(image, turns, place);
        watch.lap(Stage::Resample);
        let label = self.draw_order(rng, order);
        for (&cell, out) in order.iter().zip(out.chunks_exact_mut(patch_len)) {
            let place = self.cut_patch(whole, cell, rng, part);
            trace.patches.push(Patch { cell, place });
            self.augment.apply(part, rng, spare);
            watch.lap(Stage::Photometric);
            write_planes(part, out);
            watch.lap(Stage::Write);
        }
        Ok(label)
    }
}
