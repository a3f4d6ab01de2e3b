//! The image turned by a random number of quarters (Gidaris et al., arXiv:1803.07728).

use rand::Rng;

use super::Pretext;
use crate::random::below;
use crate::stages::Stage;
use crate::transform::{ImageView, Scratch, check_output, quarter_turns, write_planes};
use crate::{DataError, Image};

const TURNS: usize = 4;

/// A usual view of the image, turned counter-clockwise by 0, 90, 180 or 270 degrees; the label
/// counts the quarters.
pub(crate) struct Rotation {
    view: ImageView,
}

impl Rotation {
    pub(crate) fn new(view: ImageView) -> Self {
        Self { view }
    }
}

impl Pretext for Rotation {
    fn views(&self) -> usize {
        1
    }

    fn view_size(&self) -> usize {
        self.view.size()
    }

    fn labels(&self) -> usize {
        TURNS
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        check_output(out, self.view.channels() * self.view.size().pow(2))?;
        self.view.draw(image, rng, scratch)?;
        let turns = below(rng, TURNS) as u32;
        quarter_turns(&scratch.crop, turns, &mut scratch.part);
        scratch.trace.turned_after = turns;
        scratch.watch.lap(Stage::Photometric);
        write_planes(&scratch.part, out);
        scratch.watch.lap(Stage::Write);
        Ok(turns)
    }
}
