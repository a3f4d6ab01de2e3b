use std::path::Path;

use pirl_core::random::{below, stream, uniform};
use pirl_core::{SettingError, check};
use pirl_data::Pack;
use rand::{Rng, RngExt};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::SceneError;
use crate::composition::Composition;
use crate::item::Item;
use crate::voc::{Folder, Placed};

/// What the streams of random numbers of scenes are for, among those of a seed; part of what a seed means.
const SCENE: u64 = 5;

/// What scenes look like.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneConfig {
    /// Scenes; 1000 by default.
    pub scenes: usize,
    /// Width and height, pixels; each scene draws one of them for each side. 128, 144 and 160 by
    /// default.
    pub sides: Vec<usize>,
    /// Items in a scene, at least and at most; 2 to 6 by default. A crowded scene gets fewer.
    pub items: [usize; 2],
    /// Longer side of an item, pixels, drawn evenly by its logarithm; 24 to 80 by default.
    pub item_side: [usize; 2],
    /// An item is `difficult` when less than this much of it is visible; 0.6 by default.
    pub difficult_below: f64,
    /// No item is covered so far that less than this is visible; 0.35 by default.
    pub visible_at_least: f64,
    /// Seed of everything random; the name of the image set is part of it.
    pub seed: u64,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            scenes: 1000,
            sides: vec![128, 144, 160],
            items: [2, 6],
            item_side: [24, 80],
            difficult_below: 0.6,
            visible_at_least: 0.35,
            seed: 0,
        }
    }
}

impl SceneConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check("scenes", self.scenes, self.scenes > 0, "must be at least 1")?;
        let [least, most] = self.items;
        check(
            "items",
            format!("{:?}", self.items),
            0 < least && least <= most,
            "must be two numbers of at least 1, the least first",
        )?;
        let [least, most] = self.item_side;
        let smallest = self.sides.iter().min().copied().unwrap_or(0);
        check(
            "item_side",
            format!("{:?}", self.item_side),
            4 <= least && least <= most && most <= smallest,
            &format!(
                "must be two numbers from 4 to {smallest}, the shortest side of a scene, the least first"
            ),
        )?;
        check(
            "sides",
            format!("{:?}", self.sides),
            self.sides.iter().all(|side| *side <= 4096),
            "must be at most 4096 pixels",
        )?;
        for (field, share) in [
            ("difficult_below", self.difficult_below),
            ("visible_at_least", self.visible_at_least),
        ] {
            let fits = (0.0..=1.0).contains(&share);
            check(field, share, fits, "must lie in [0, 1]")?;
        }
        Ok(())
    }
}

/// What was composed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SceneReport {
    /// Scenes written.
    pub scenes: usize,
    /// Items in them.
    pub objects: usize,
    /// Items that are mostly covered.
    pub difficult: usize,
}

/// Composes scenes of the labelled images of `pack` and writes them below `folder` in the layout of
/// VOC: `JPEGImages`, `Annotations`, `ImageSets/Main/SPLIT.txt`, and `class_names.txt` with the
/// pack's classes. Calls `progress` with the scenes done and the scenes in all.
///
/// An item is what is not dark background at the border of its image; a box is around what is visible
/// of it. The same settings and pack give the same files. The image set is written last, so a folder
/// in which it is missing is not finished.
///
/// # Errors
/// [`SceneError::Setting`]; [`SceneError::Unlabelled`]; [`SceneError::Exists`] when the image set is there
/// already; [`SceneError::OtherClasses`] when the folder holds scenes of another pack's classes;
/// [`SceneError::Data`] for an image that cannot be decoded; [`SceneError::Io`].
pub fn compose_scenes(
    pack: &Pack,
    folder: &Path,
    split: &str,
    config: &SceneConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<SceneReport, SceneError> {
    /// Scenes between two calls of `progress`.
    const PART: usize = 64;
    config.check()?;
    if pack.labels().is_none() {
        return Err(SceneError::Unlabelled {
            path: pack.paths().first().cloned().unwrap_or_default(),
        });
    }
    let channels = pack.channels();
    let rgb = "must be 3: scenes are composed in RGB";
    check("channels", channels, channels == 3, rgb)?;
    let folder = Folder::create(folder, split, pack.class_names())?;
    let set = xxh3_64(split.as_bytes());
    let mut report = SceneReport::default();
    let mut names = Vec::with_capacity(config.scenes);
    for start in (0..config.scenes).step_by(PART) {
        let part = start..config.scenes.min(start + PART);
        let written: Vec<(String, Vec<Placed>)> = part
            .into_par_iter()
            .map(|index| {
                let mut rng = stream(config.seed, SCENE, set, index as u64);
                let (scene, placed) = compose(pack, config, &mut rng)?;
                let name = format!("{split}_{index:06}");
                folder.write(&name, scene, &placed)?;
                Ok((name, placed))
            })
            .collect::<Result<_, SceneError>>()?;
        for (name, placed) in written {
            report.scenes += 1;
            report.objects += placed.len();
            report.difficult += placed.iter().filter(|placed| placed.difficult).count();
            names.push(name);
        }
        progress(report.scenes, config.scenes);
    }
    folder.finish(&names)?;
    Ok(report)
}

/// One scene: background, clutter below, items above.
fn compose(
    pack: &Pack,
    config: &SceneConfig,
    rng: &mut dyn Rng,
) -> Result<(Composition, Vec<Placed>), SceneError> {
    /// Places tried for an item.
    const TRIES: usize = 30;
    let mut side = || config.sides[below(rng, config.sides.len())];
    let mut scene = Composition::new(side(), side(), rng);
    for _ in 0..rng.random_range(4..=10) {
        let fragment = Item::draw(pack, rng)?.fragment(rng)?;
        let (x, y) = scene.place_anywhere(fragment.size(), rng);
        scene.paint(&fragment, (x, y));
    }
    let [least, most] = config.items;
    let mut labels = Vec::new();
    for _ in 0..rng.random_range(least..=most) {
        let item = Item::draw(pack, rng)?;
        let longer = uniform(rng, config.item_side.map(|side| (side as f64).ln())).exp();
        let item = item.scaled(longer.round() as usize, uniform(rng, [0.7, 1.25]))?;
        for _ in 0..TRIES {
            let place = scene.place(item.size(), rng);
            if scene.least_visible_with(&item, place) >= config.visible_at_least {
                scene.own(&item, place);
                labels.push(item.label());
                break;
            }
        }
    }
    let placed = scene
        .owners()
        .into_iter()
        .zip(labels)
        .map(|(owner, label)| Placed {
            label,
            bounds: owner.bounds,
            occluded: owner.visible < 0.95,
            difficult: owner.visible < config.difficult_below,
        });
    let placed = placed.collect();
    Ok((scene, placed))
}
