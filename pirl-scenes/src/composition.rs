//! The picture being composed, and which item each of its pixels shows.

use pirl_core::random::{below, uniform};
use pirl_data::Image;
use rand::Rng;

use crate::item::Item;

/// From this share on a pixel of an item counts as its own.
const SOLID: f32 = 0.5;

/// A picture and the owners of its pixels.
pub(crate) struct Composition {
    image: Image,
    /// The item shown, by number; none where background and clutter are.
    shown: Vec<Option<u32>>,
    /// Pixels of each item, covered or not.
    sizes: Vec<usize>,
}

/// What is visible of an item.
pub(crate) struct Owner {
    /// The box around it: left, top, and one beyond right and bottom.
    pub(crate) bounds: [usize; 4],
    /// Its visible share.
    pub(crate) visible: f64,
}

impl Composition {
    /// Grey, brighter to one side, with a little noise.
    pub(crate) fn new(width: usize, height: usize, rng: &mut dyn Rng) -> Self {
        let (base, noise) = (uniform(rng, [20.0, 110.0]), uniform(rng, [2.0, 10.0]));
        let slope = [(); 2].map(|()| uniform(rng, [-40.0, 40.0]));
        let mut pixels = Vec::with_capacity(width * height * 3);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let lit = slope[0] * (x as f64 / width as f64 - 0.5)
                + slope[1] * (y as f64 / height as f64 - 0.5);
            let grey = base + lit + uniform(rng, [-noise, noise]);
            pixels.extend([grey.clamp(0.0, 255.0) as u8; 3]);
        }
        Self {
            image: Image {
                width,
                height,
                channels: 3,
                pixels,
            },
            shown: vec![None; width * height],
            sizes: Vec::new(),
        }
    }

    pub(crate) fn into_image(self) -> Image {
        self.image
    }

    /// A place where something of this size is wholly inside, as far as it can be.
    pub(crate) fn place(
        &self,
        (width, height): (usize, usize),
        rng: &mut dyn Rng,
    ) -> (isize, isize) {
        let mut start = |whole: usize, side: usize| below(rng, whole.saturating_sub(side) + 1);
        let (x, y) = (
            start(self.image.width, width),
            start(self.image.height, height),
        );
        (x as isize, y as isize)
    }

    /// A place where something of this size may be cut by an edge.
    pub(crate) fn place_anywhere(
        &self,
        (width, height): (usize, usize),
        rng: &mut dyn Rng,
    ) -> (isize, isize) {
        let mut start =
            |whole: usize, side: usize| below(rng, whole + side) as isize - side as isize;
        (
            start(self.image.width, width),
            start(self.image.height, height),
        )
    }

    /// The pixel at `place` of an item painted at `at`; `None` outside.
    fn pixel(&self, (x, y): (usize, usize), at: (isize, isize)) -> Option<usize> {
        let x = at.0.checked_add_unsigned(x)?;
        let y = at.1.checked_add_unsigned(y)?;
        let (x, y) = (usize::try_from(x).ok()?, usize::try_from(y).ok()?);
        (x < self.image.width && y < self.image.height).then(|| y * self.image.width + x)
    }

    /// Paints something that is no object.
    pub(crate) fn paint(&mut self, item: &Item, at: (isize, isize)) {
        for (place, color, share) in item.pixels() {
            let Some(pixel) = self.pixel(place, at) else {
                continue;
            };
            let under = &mut self.image.pixels[pixel * 3..][..3];
            for (under, color) in under.iter_mut().zip(color) {
                let mixed = f32::from(*under) * (1.0 - share) + f32::from(color);
                *under = mixed.round().min(255.0) as u8;
            }
        }
    }

    /// Paints an item and records which pixels are its own.
    pub(crate) fn own(&mut self, item: &Item, at: (isize, isize)) {
        self.paint(item, at);
        let number = self.sizes.len() as u32;
        let mut size = 0;
        for (place, _, share) in item.pixels() {
            if let Some(pixel) = self.pixel(place, at).filter(|_| share >= SOLID) {
                self.shown[pixel] = Some(number);
                size += 1;
            }
        }
        self.sizes.push(size);
    }

    /// The smallest visible share of any item, were this one painted; 0 if it has no pixel at all.
    pub(crate) fn least_visible_with(&self, item: &Item, at: (isize, isize)) -> f64 {
        let mut visible = self.visible();
        let mut own = 0;
        for (place, _, share) in item.pixels() {
            if let Some(pixel) = self.pixel(place, at).filter(|_| share >= SOLID) {
                own += 1;
                if let Some(covered) = self.shown[pixel] {
                    visible[covered as usize] -= 1;
                }
            }
        }
        let shares = visible.iter().zip(&self.sizes);
        let shares = shares.map(|(&visible, &size)| visible as f64 / size.max(1) as f64);
        shares.fold(if own > 0 { 1.0 } else { 0.0 }, f64::min)
    }

    /// Visible pixels of each item.
    fn visible(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sizes.len()];
        for shown in self.shown.iter().flatten() {
            counts[*shown as usize] += 1;
        }
        counts
    }

    /// What is visible of each item, in the order they were painted.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        let width = self.image.width;
        let mut bounds = vec![[usize::MAX, usize::MAX, 0, 0]; self.sizes.len()];
        for (at, shown) in self.shown.iter().enumerate() {
            if let Some(number) = shown {
                let (x, y) = (at % width, at / width);
                let [left, top, right, bottom] = &mut bounds[*number as usize];
                (*left, *top) = ((*left).min(x), (*top).min(y));
                (*right, *bottom) = ((*right).max(x + 1), (*bottom).max(y + 1));
            }
        }
        let counts = self.visible().into_iter().zip(&self.sizes);
        let owner = |(bounds, (visible, &size)): ([usize; 4], (usize, &usize))| Owner {
            bounds,
            visible: visible as f64 / size.max(1) as f64,
        };
        bounds.into_iter().zip(counts).map(owner).collect()
    }
}
