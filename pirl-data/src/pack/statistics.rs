//! What the images of a pack are like: sizes and colours.

use std::collections::HashSet;
use std::fmt::{self, Display};

use rayon::prelude::*;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use super::report::listed;
use super::{Counts, Pack, Skipped};
use crate::{DataError, Image};

/// Images between two calls of the progress.
const CHUNK: usize = 256;

/// Sizes and colours of a pack's images, or of a sample of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageStatistics {
    /// Images looked at.
    pub images: usize,
    /// Those that cannot be decoded, by their number; the rest is of the others.
    pub broken: Vec<Skipped>,
    /// Those that have the bytes of another one looked at before them.
    pub duplicates: usize,
    /// The shorter sides, in pixels.
    pub shorter_side: Sides,
    /// The longer sides, in pixels.
    pub longer_side: Sides,
    /// Whether every pixel of every image is grey; false of channels that are not RGB, unless there is one.
    pub gray: bool,
    /// Mean of each channel over all pixels, every image counting alike, of values in 0..=1.
    pub mean: Vec<f64>,
    /// Standard deviation, likewise, at least 0.001: numbers are divided by it.
    pub std: Vec<f64>,
}

/// The least, the middle and the greatest of the sides of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// The least.
    pub least: usize,
    /// The median: of an even number, the greater of the two in the middle.
    pub median: usize,
    /// The greatest.
    pub greatest: usize,
}

impl Sides {
    /// `None` of none.
    fn of(mut sides: Vec<usize>) -> Option<Self> {
        sides.sort_unstable();
        Some(Self {
            least: *sides.first()?,
            median: *sides.get(sides.len() / 2)?,
            greatest: *sides.last()?,
        })
    }
}

impl Display for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            least,
            median,
            greatest,
        } = self;
        write!(f, "{least} to {greatest} pixels, median {median}")
    }
}

/// What one image adds.
struct Look {
    size: (usize, usize),
    gray: bool,
    /// Sum and sum of squares of each channel's bytes: whole numbers, which are exact.
    sums: Vec<(u64, u64)>,
}

impl ImageStatistics {
    /// Of `sample` images, evenly spaced in the pack; of all for 0 or as many as there are.
    ///
    /// `progress` is called with images done and images in all. `stop` ends it early when true. The
    /// numbers do not depend on the number of threads.
    ///
    /// # Errors
    /// [`DataError::Stopped`]; [`DataError::Decode`] if none can be decoded.
    pub fn of(
        pack: &Pack,
        sample: usize,
        progress: &mut dyn FnMut(usize, usize),
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, DataError> {
        let count = match sample {
            0 => pack.len(),
            sample => sample.min(pack.len()),
        };
        let place = |number: usize| (number as u128 * pack.len() as u128 / count as u128) as usize;
        let mut broken = Vec::new();
        let mut failure = None;
        let mut seen = HashSet::with_capacity(count);
        let (mut shorter, mut longer) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let channels = pack.channels();
        let (mut sums, mut squares) = (vec![0f64; channels], vec![0f64; channels]);
        let mut gray = true;
        for start in (0..count).step_by(CHUNK) {
            let end = count.min(start + CHUNK);
            let looks: Vec<_> = (start..end)
                .into_par_iter()
                .map_init(Image::empty, |image, number| {
                    let index = place(number);
                    let hash = xxh3_128(pack.bytes(index).unwrap_or_default());
                    (index, hash, look(pack, index, image))
                })
                .collect();
            for (index, hash, look) in looks {
                seen.insert(hash);
                let look = match look {
                    Ok(look) => look,
                    Err(error) => {
                        broken.push(Skipped {
                            name: pack.called(index),
                            reason: error.to_string(),
                        });
                        failure.get_or_insert(error);
                        continue;
                    }
                };
                let (width, height) = look.size;
                shorter.push(width.min(height));
                longer.push(width.max(height));
                gray &= look.gray;
                let pixels = (width * height) as f64;
                for (channel, (sum, square)) in look.sums.into_iter().enumerate() {
                    sums[channel] += sum as f64 / 255.0 / pixels;
                    squares[channel] += square as f64 / 255.0 / 255.0 / pixels;
                }
            }
            progress(end, count);
            if stop() {
                return Err(DataError::Stopped {
                    doing: "looking at images",
                    done: end,
                    total: count,
                });
            }
        }
        let decoded = shorter.len() as f64;
        let (Some(shorter_side), Some(longer_side)) = (Sides::of(shorter), Sides::of(longer))
        else {
            return Err(failure.unwrap_or(DataError::Index { index: 0, len: 0 }));
        };
        let mean: Vec<f64> = sums.iter().map(|sum| sum / decoded).collect();
        let variance = |(square, mean): (&f64, &f64)| square / decoded - mean * mean;
        let std = squares.iter().zip(&mean).map(variance);
        let std = std.map(|square| square.max(0.0).sqrt().max(1e-3)).collect();
        Ok(Self {
            images: count,
            duplicates: count - seen.len(),
            broken,
            shorter_side,
            longer_side,
            gray,
            std,
            mean,
        })
    }

    /// These numbers in words, with what else is known of `pack`, which they are of; at the end, for a
    /// recipe, [`ImageStatistics::to_toml`].
    pub fn describe(&self, pack: &Pack, counts: &Counts) -> String {
        let mut text = format!("images        {}", pack.len());
        let mut line = |name: &str, value: String| text.push_str(&format!("\n{name:<14}{value}"));
        if self.images < pack.len() {
            line("looked at", self.images.to_string());
        }
        let classes = pack.class_names().len();
        let (what, per_class) = match (&counts.images_per_class, &counts.objects) {
            (Some(images), _) => ("images", Some(images)),
            (None, Some(objects)) => ("objects", Some(&objects.per_class)),
            (None, None) => ("", None),
        };
        match per_class {
            None => line("classes", "none".to_owned()),
            Some(counts) => {
                let each = (0..classes as u32).map(|label| counts.get(&label).copied());
                let each = || each.clone().map(Option::unwrap_or_default);
                let (least, most) = (each().min().unwrap_or(0), each().max().unwrap_or(0));
                line("classes", format!("{classes}, of {least} to {most} {what}"));
            }
        }
        line("shorter side", self.shorter_side.to_string());
        line("longer side", self.longer_side.to_string());
        line("grey", if self.gray { "all" } else { "not all" }.to_owned());
        line("duplicates", self.duplicates.to_string());
        if !self.broken.is_empty() {
            line("broken", listed(&self.broken));
        }
        text + "\n\n" + &self.to_toml()
    }

    /// The table of a recipe that normalises images like these, in four digits.
    pub fn to_toml(&self) -> String {
        let list = |values: &[f64]| {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.4}")).collect();
            values.join(", ")
        };
        let channels = match self.mean.len() {
            3 => String::new(),
            channels => format!("channels = {channels}\n"),
        };
        format!(
            "[data]\n{channels}mean = [{}]\nstd = [{}]\n",
            list(&self.mean),
            list(&self.std)
        )
    }
}

fn look(pack: &Pack, index: usize, image: &mut Image) -> Result<Look, DataError> {
    pack.decode_into(index, image)?;
    let channels = image.channels;
    let mut sums = vec![(0, 0); channels];
    let mut gray = matches!(channels, 1 | 3);
    for pixel in image.pixels.chunks_exact(channels) {
        gray &= pixel.iter().all(|value| *value == pixel[0]);
        for ((sum, square), value) in sums.iter_mut().zip(pixel) {
            *sum += u64::from(*value);
            *square += u64::from(*value).pow(2);
        }
    }
    Ok(Look {
        size: (image.width, image.height),
        gray,
        sums,
    })
}
