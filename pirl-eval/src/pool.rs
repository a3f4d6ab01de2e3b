//! From a feature map to a feature vector.

use std::fmt;
use std::ops::Range;

use candle_core::Tensor;
use pirl_core::SettingError;
use pirl_model::Layer;
use rayon::prelude::*;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::EvalError;

/// Features that a layer has at most under [`Pool::Grid`], as in the published protocol.
const GRID_DIM: usize = 9216;

/// How a layer's maps become one vector for each image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The average over all positions: as many features as channels. The default, for small images
    /// and quick probes.
    #[default]
    Average,
    /// About 9,000 features a layer, as published for ImageNet: a ResNet-50's maps of a 224-pixel
    /// image are pooled with VISSL's kernels, strides and paddings (conv1 10/10/4, res2 16/8/0,
    /// res3 13/5/0, res4 8/3/0, res5 6/1/0; padding counts as zeros); any other map is pooled
    /// adaptively, as PyTorch's `adaptive_avg_pool2d` does, to the largest square grid with at
    /// most 9,216 features in all.
    Grid,
}

/// One pooling, or several that a probe chooses from. In settings the name of one, or a list of names.
///
/// Of one pooling, features are called by their layer: `res4`. Of several, those of the first of [`Pool::ALL`]
/// among them are called so, and those of another have its name behind: `res4/grid`. A layer asked for by such
/// a name is pooled so alone, whatever the poolings are. A name such as `res4+res5` is that of several layers,
/// each pooled so, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// Those of `pools`, in the order of [`Pool::ALL`].
    ///
    /// # Errors
    /// If there is none, or one of them twice.
    pub fn new(mut pools: Vec<Pool>) -> Result<Self, SettingError> {
        pools.sort_unstable();
        if pools.is_empty() || pools.windows(2).any(|two| two[0] == two[1]) {
            let expected = "must be one pooling, or a list of different ones: average, grid";
            return Err(SettingError::new("pool", Self(pools), expected));
        }
        Ok(Self(pools))
    }

    /// The pooling, if there is one alone.
    pub fn only(&self) -> Option<Pool> {
        match self.0[..] {
            [pool] => Some(pool),
            _ => None,
        }
    }

    /// The pooling of the features that are called by their layer alone.
    pub fn plain(&self) -> Pool {
        self.0.first().copied().unwrap_or_default()
    }

    /// What is read where `name` is asked for.
    pub(crate) fn readings(&self, name: &Layer) -> Vec<Reading> {
        let (layer, behind) = name.as_str().rsplit_once('/').unwrap_or_default();
        if let Some(pool) = Pool::ALL.into_iter().find(|pool| pool.name() == behind) {
            return vec![Reading {
                name: name.clone(),
                layers: joined(layer),
                pool,
                choice: Choice::Named,
            }];
        }
        let reading = |pool: &Pool| Reading {
            name: match *pool == self.plain() {
                true => name.clone(),
                false => Layer::new(format!("{name}/{pool}")),
            },
            layers: joined(name.as_str()),
            pool: *pool,
            choice: match self.only() {
                Some(_) => Choice::Only,
                None => Choice::Several,
            },
        };
        self.0.iter().map(reading).collect()
    }
}

impl Default for Pools {
    fn default() -> Self {
        Pool::default().into()
    }
}

impl From<Pool> for Pools {
    fn from(pool: Pool) -> Self {
        Self(vec![pool])
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|pool| pool.name()).collect();
        match names[..] {
            [name] => f.write_str(name),
            _ => write!(f, "{names:?}"),
        }
    }
}

impl Serialize for Pools {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.only() {
            Some(pool) => pool.serialize(serializer),
            None => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Pools {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Pools;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("average, grid, or a list of both")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Pools, E> {
                Pool::deserialize(name.into_deserializer()).map(Pools::from)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Pools, A::Error> {
                let list = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Pools::new(list).map_err(Error::custom)
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

/// The layers that a name joins by `+`.
fn joined(name: &str) -> Vec<Layer> {
    let layers = name.split('+');
    layers.map(|layer| Layer::new(layer.to_owned())).collect()
}

/// The maps of a layer, or of several, pooled in one way.
pub(crate) struct Reading {
    /// What the features are called.
    pub(crate) name: Layer,
    /// Where the maps are from.
    pub(crate) layers: Vec<Layer>,
    /// How they are pooled.
    pub(crate) pool: Pool,
    /// Why so.
    pub(crate) choice: Choice,
}

impl Reading {
    /// The pooling, where reports say it.
    pub(crate) fn reported(&self) -> Option<Pool> {
        (self.choice != Choice::Only).then_some(self.pool)
    }
}

/// Why a layer is pooled as it is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Choice {
    /// All are.
    Only,
    /// It is one of several candidates.
    Several,
    /// The name says so.
    Named,
}

/// Windows along one axis, and what the sum over a window is divided by.
#[derive(Debug, PartialEq)]
struct Windows {
    /// Positions that each cell averages.
    ranges: Vec<Range<usize>>,
    /// Side of every window with its padding; `None`: its own length.
    side: Option<usize>,
}

impl Windows {
    fn adaptive(length: usize, cells: usize) -> Self {
        let ranges = (0..cells)
            .map(|i| i * length / cells..((i + 1) * length).div_ceil(cells))
            .collect();
        Self { ranges, side: None }
    }

    fn strided(length: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let cells = (length + 2 * padding - kernel) / stride + 1;
        let range = |i: usize| {
            let start = i * stride;
            start.saturating_sub(padding)..(start + kernel - padding).min(length)
        };
        Self {
            ranges: (0..cells).map(range).collect(),
            side: Some(kernel),
        }
    }

    fn divisor(&self, range: &Range<usize>) -> f32 {
        self.side.unwrap_or(range.len()) as f32
    }
}

/// (layer, channels, side of the map, kernel, stride, padding): VISSL,
/// configs/config/benchmark/linear_image_classification/imagenet1k/eval_resnet_8gpu_transfer_in1k_linear.yaml
const PUBLISHED: [(Layer, usize, usize, usize, usize, usize); 5] = [
    (Layer::CONV1, 64, 112, 10, 10, 4),
    (Layer::RES2, 256, 56, 16, 8, 0),
    (Layer::RES3, 512, 28, 13, 5, 0),
    (Layer::RES4, 1024, 14, 8, 3, 0),
    (Layer::RES5, 2048, 7, 6, 1, 0),
];

impl Pool {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Average, Self::Grid];

    /// Its name in settings and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Average => "average",
            Self::Grid => "grid",
        }
    }

    fn windows(self, layer: &Layer, channels: usize, height: usize, width: usize) -> [Windows; 2] {
        let cells = match self {
            Self::Average => 1,
            Self::Grid => {
                let published = PUBLISHED.iter().find(|(at, c, side, ..)| {
                    (at, *c, *side, *side) == (layer, channels, height, width)
                });
                if let Some(&(.., kernel, stride, padding)) = published {
                    return [height, width]
                        .map(|length| Windows::strided(length, kernel, stride, padding));
                }
                (GRID_DIM / channels.max(1))
                    .isqrt()
                    .min(height)
                    .min(width)
                    .max(1)
            }
        };
        [height, width].map(|length| Windows::adaptive(length, cells))
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Maps of images, in memory.
pub(crate) struct Maps {
    /// Channels last.
    values: Vec<f32>,
    channels: usize,
    height: usize,
    width: usize,
}

impl Maps {
    /// `maps`: `(b, c, h, w)`, in any memory layout.
    pub(crate) fn of(maps: &Tensor) -> Result<Self, EvalError> {
        let (_, channels, height, width) = maps.dims4()?;
        // The fast engine's maps are views of channels-last memory: this copies nothing then.
        let values = maps.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?;
        Ok(Self {
            values,
            channels,
            height,
            width,
        })
    }

    /// The cells that `pool` averages where these are the maps of `layer`.
    pub(crate) fn cells(&self, pool: Pool, layer: &Layer) -> Cells {
        let [rows, columns] = pool.windows(layer, self.channels, self.height, self.width);
        Cells { rows, columns }
    }

    /// At most `side` rows and `side` columns of cells, adaptively; smaller maps stay as they are.
    pub(crate) fn at_most(&self, side: usize) -> Cells {
        let windows = |length: usize| Windows::adaptive(length, length.min(side));
        Cells {
            rows: windows(self.height),
            columns: windows(self.width),
        }
    }

    /// The rows of features, `(b, c * cells)`.
    pub(crate) fn average(&self, cells: &Cells) -> Vec<f32> {
        let (channels, width) = (self.channels, self.width);
        let (rows, columns) = (&cells.rows, &cells.columns);
        let cells = cells.count();
        self.values
            .par_chunks((self.height * width * channels).max(1))
            .flat_map_iter(|map| {
                let mut pooled = vec![0.0; channels * cells];
                let mut sums = vec![0f32; channels];
                let windows = rows
                    .ranges
                    .iter()
                    .flat_map(|row| columns.ranges.iter().map(move |column| (row, column)));
                for (cell, (row, column)) in windows.enumerate() {
                    sums.fill(0.0);
                    for y in row.clone() {
                        let line = &map[(y * width + column.start) * channels..];
                        for pixel in line[..column.len() * channels].chunks_exact(channels) {
                            sums.iter_mut()
                                .zip(pixel)
                                .for_each(|(sum, value)| *sum += value);
                        }
                    }
                    let count = rows.divisor(row) * columns.divisor(column);
                    for (channel, sum) in sums.iter().enumerate() {
                        pooled[channel * cells + cell] = sum / count;
                    }
                }
                pooled
            })
            .collect()
    }
}

/// The parts of a map that are averaged.
#[derive(Debug, PartialEq)]
pub(crate) struct Cells {
    rows: Windows,
    columns: Windows,
}

impl Cells {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.rows.ranges.len() * self.columns.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn dim(pool: Pool, layer: Layer, channels: usize, side: usize) -> usize {
        let [rows, columns] = pool.windows(&layer, channels, side, side);
        channels * rows.ranges.len() * columns.ranges.len()
    }

    #[test]
    fn a_grid_has_the_published_sizes_and_never_more_than_9216_features() {
        let sizes =
            PUBLISHED.map(|(layer, channels, side, ..)| dim(Pool::Grid, layer, channels, side));
        assert_eq!(sizes, [9216, 9216, 8192, 9216, 8192]);
        assert_eq!(dim(Pool::Grid, Layer::RES5, 512, 7), 512 * 16); // ResNet-18
        assert_eq!(dim(Pool::Grid, Layer::RES2, 32, 28), 32 * 16 * 16); // 17 * 17 * 32 = 9248
        assert_eq!(dim(Pool::Grid, Layer::RES5, 256, 4), 256 * 16); // no finer than the map
        assert_eq!(dim(Pool::Grid, Layer::RES5, 16_384, 7), 16_384);
        assert_eq!(dim(Pool::Average, Layer::RES4, 1024, 14), 1024);
    }

    #[test]
    fn windows_are_those_of_pytorch() {
        // adaptive_avg_pool2d of 7 into 3: [0, 3), [2, 5), [4, 7).
        assert_eq!(Windows::adaptive(7, 3).ranges, [0..3, 2..5, 4..7]);
        let conv1 = Windows::strided(112, 10, 10, 4);
        assert_eq!(
            (conv1.ranges.len(), &conv1.ranges[0], &conv1.ranges[11]),
            (12, &(0..6), &(106..112))
        );
    }

    #[test]
    fn one_pooling_is_a_name_and_several_are_a_list() {
        let read = |text: &str| serde_json::from_str::<Pools>(text);
        for (text, written) in [
            (r#""grid""#, r#""grid""#),
            (r#"["grid"]"#, r#""grid""#),
            (r#"["grid","average"]"#, r#"["average","grid"]"#),
        ] {
            let pools = read(text).unwrap();
            assert_eq!(serde_json::to_string(&pools).unwrap(), written);
        }
        for (text, said) in [
            (r#""gird""#, "`gird`"),
            (r#"["average", "gird"]"#, "`gird`"),
            ("[]", "pool = []"),
            (r#"["grid", "grid"]"#, r#"pool = ["grid", "grid"]"#),
            ("3", "a list of both"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn features_are_called_by_their_layer_and_of_several_poolings_by_both() {
        let of = |pools: &Pools, name: &'static str| -> Vec<(String, String, Pool)> {
            let readings = pools.readings(&Layer::new(name)).into_iter();
            let from = |layers: &[Layer]| {
                let names: Vec<_> = layers.iter().map(Layer::as_str).collect();
                names.join(" and ")
            };
            let readings = readings.map(|of| (of.name.to_string(), from(&of.layers), of.pool));
            readings.collect()
        };
        let reading = |name: &str, pool| (name.to_owned(), "res4".to_owned(), pool);
        let (one, both) = (Pools::from(Pool::Grid), Pools(Pool::ALL.to_vec()));
        assert_eq!(of(&one, "res4"), [reading("res4", Pool::Grid)]);
        let average = reading("res4", Pool::Average);
        assert_eq!(
            of(&both, "res4"),
            [average, reading("res4/grid", Pool::Grid)]
        );
        for pools in [&one, &both] {
            let average = reading("res4/average", Pool::Average);
            assert_eq!(of(pools, "res4/average"), [average]);
            let joined = (
                "res3+res4/grid".to_owned(),
                "res3 and res4".to_owned(),
                Pool::Grid,
            );
            assert_eq!(of(pools, "res3+res4/grid"), [joined]);
        }
        // A backbone's own name may have a stroke, too.
        assert_eq!(of(&one, "stage/4")[0].1, "stage/4");
    }

    #[test]
    fn maps_are_averaged_whatever_their_memory_layout() -> Result<(), EvalError> {
        let values = benches::fill(5, 2 * 3 * 4 * 6);
        let maps = Tensor::from_vec(values.clone(), (2, 3, 4, 6), &Device::Cpu)?;
        let view = maps
            .permute((0, 2, 3, 1))?
            .contiguous()?
            .permute((0, 3, 1, 2))?;
        for maps in [&maps, &view] {
            let maps = Maps::of(maps)?;
            let pooled = |pool| {
                let cells = maps.cells(pool, &Layer::RES3);
                (maps.average(&cells), cells.count())
            };
            let (average, cells) = pooled(Pool::Average);
            assert_eq!((average.len(), cells), (6, 1));
            for (got, map) in average.iter().zip(values.chunks(24)) {
                assert!((got - map.iter().sum::<f32>() / 24.0).abs() < 1e-6);
            }
            // A 4 x 4 grid over 4 x 6: columns [0, 2), [1, 3), [3, 5), [4, 6).
            let (grid, cells) = pooled(Pool::Grid);
            assert_eq!((grid.len(), cells), (2 * 3 * 16, 16));
            let [a, b] = [values[24 + 6 + 1], values[24 + 6 + 2]]; // channel 1, row 1
            assert!((grid[16 + 4 + 1] - (a + b) / 2.0).abs() < 1e-6);
        }
        Ok(())
    }
}
