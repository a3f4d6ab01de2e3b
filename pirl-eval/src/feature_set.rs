//! Features of a pack, layer by layer, with the labels of their images.

use pirl_model::Layer;

use crate::error::{EvalError, Result};
use crate::pool::Pool;

/// The features of one layer: a row for each image, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerFeatures {
    layer: Layer,
    pool: Option<Pool>,
    rows: usize,
    dim: usize,
    cells: usize,
    values: Vec<f32>,
}

impl LayerFeatures {
    /// `values`: `(rows, dim)`, row by row; every column is a channel of its own.
    ///
    /// # Errors
    /// [`EvalError::Shape`] if `values` has another length or a size is 0;
    /// [`EvalError::NotFinite`].
    pub fn new(layer: Layer, rows: usize, dim: usize, values: Vec<f32>) -> Result<Self> {
        Self::with_cells(layer, rows, dim, 1, values)
    }

    /// `values`: `(rows, dim)` with `dim = channels * cells`, the cells of a channel side by side,
    /// as a flattened `(channels, height, width)` map has them. Batch norm treats the cells of a
    /// channel alike.
    ///
    /// # Errors
    /// As [`LayerFeatures::new`]; also if `cells` does not divide `dim`.
    pub fn with_cells(
        layer: Layer,
        rows: usize,
        dim: usize,
        cells: usize,
        values: Vec<f32>,
    ) -> Result<Self> {
        let fits = rows.checked_mul(dim) == Some(values.len()) && !values.is_empty();
        if !fits || cells == 0 || !dim.is_multiple_of(cells) {
            return Err(EvalError::Shape {
                what: format!("features of {layer}"),
                expected: format!("{rows} rows of {dim} in cells of {cells}, at least one of each"),
                found: format!("{} values", values.len()),
            });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(EvalError::NotFinite {
                layer,
                row: at / dim,
                column: at % dim,
                value: values[at],
            }),
            None => Ok(Self {
                layer,
                pool: None,
                rows,
                dim,
                cells,
                values,
            }),
        }
    }

    /// The same, as one of several poolings of a layer.
    pub(crate) fn pooled_by(self, pool: Option<Pool>) -> Self {
        Self { pool, ..self }
    }

    /// Adds the rows of `other`, which are of the same layer and size.
    pub(crate) fn append(&mut self, other: Self) {
        self.rows += other.rows;
        self.values.extend(other.values);
    }

    /// What there is of each image: the same without images.
    pub(crate) fn kind(&self) -> Self {
        Self {
            layer: self.layer.clone(),
            pool: self.pool,
            rows: 0,
            dim: self.dim,
            cells: self.cells,
            values: Vec::new(),
        }
    }

    /// Where in the backbone they were read; of several poolings with that behind it, as
    /// [`Pools`](crate::Pools) have it.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// How the layer's maps were pooled, where that is a choice or [`LayerFeatures::layer`] says it.
    pub fn pool(&self) -> Option<Pool> {
        self.pool
    }

    /// Number of images, at least 1.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features of an image, at least 1.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Neighbouring columns that belong to one channel.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// `(rows, dim)`, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn repeats_channels(&self) -> bool {
        let cells = self.cells;
        let mut rows = self.values.chunks_exact(self.dim);
        rows.all(|row| row.chunks_exact(cells).all(|plane| plane == &row[..cells]))
    }

    fn first_channel(self) -> Self {
        let (dim, cells) = (self.dim, self.cells);
        let rows = self.values.chunks_exact(dim);
        let values = rows.flat_map(|row| &row[..cells]).copied().collect();
        Self {
            dim: cells,
            values,
            ..self
        }
    }

    /// The features of image `row`, which must be below [`LayerFeatures::rows`].
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..][..self.dim]
    }
}

/// The values of some layers, for [`from_bytes`].
pub(crate) fn to_bytes(layers: &[LayerFeatures]) -> Vec<u8> {
    let values = layers.iter().flat_map(|layer| &layer.values);
    values.flat_map(|value| value.to_le_bytes()).collect()
}

/// The features of so many images that another rank has read, of layers of these kinds.
pub(crate) fn from_bytes(
    kinds: &[LayerFeatures],
    rows: usize,
    bytes: &[u8],
) -> Result<Vec<LayerFeatures>> {
    let numbers = bytes.as_chunks().0.iter();
    let mut values = numbers.map(|bytes| f32::from_le_bytes(*bytes));
    let layers = kinds.iter().map(|kind| {
        let own = values.by_ref().take(rows * kind.dim).collect();
        let layer = kind.layer.clone();
        let found = LayerFeatures::with_cells(layer, rows, kind.dim, kind.cells, own)?;
        Ok(found.pooled_by(kind.pool))
    });
    layers.collect()
}

/// The features of a pack's images at one or more layers, and their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    layers: Vec<LayerFeatures>,
    labels: Vec<Option<u32>>,
    class_names: Vec<String>,
}

impl FeatureSet {
    /// `labels`: one for each row of every layer, as indices into `class_names`.
    ///
    /// # Errors
    /// [`EvalError::Shape`] without layers or if a layer has another number of rows;
    /// [`EvalError::Label`] for a label that is no index into `class_names`.
    pub fn new(
        layers: Vec<LayerFeatures>,
        labels: Vec<Option<u32>>,
        class_names: Vec<String>,
    ) -> Result<Self> {
        if layers.is_empty() {
            return Err(EvalError::Shape {
                what: "a set of features".to_owned(),
                expected: "at least one layer".to_owned(),
                found: "none".to_owned(),
            });
        }
        for layer in &layers {
            if layer.rows != labels.len() {
                return Err(EvalError::Shape {
                    what: format!("features of {}", layer.layer),
                    expected: format!("{} rows, one for each label", labels.len()),
                    found: format!("{}", layer.rows),
                });
            }
        }
        let classes = class_names.len();
        for (index, label) in labels.iter().enumerate() {
            match *label {
                Some(label) if label as usize >= classes => {
                    return Err(EvalError::Label {
                        index,
                        label,
                        classes,
                    });
                }
                _ => {}
            }
        }
        Ok(Self {
            layers,
            labels,
            class_names,
        })
    }

    /// The layers, in the order they were asked for.
    pub fn layers(&self) -> &[LayerFeatures] {
        &self.layers
    }

    /// The labels; `None` for an image without one.
    pub fn labels(&self) -> &[Option<u32>] {
        &self.labels
    }

    /// The classes, by label.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Every label; `set` names the set in the error.
    pub(crate) fn labelled(&self, set: &'static str) -> Result<Vec<u32>> {
        let labels = self.labels.iter().enumerate();
        labels
            .map(|(index, label)| label.ok_or(EvalError::Unlabelled { set, index }))
            .collect()
    }

    /// Whether every image has the same features in all channels of a layer.
    pub(crate) fn repeats_channels(&self) -> bool {
        self.layers.iter().all(LayerFeatures::repeats_channels)
    }

    /// Of every layer the first channel alone.
    pub(crate) fn first_channel(mut self) -> Self {
        let layers = self.layers.into_iter();
        self.layers = layers.map(LayerFeatures::first_channel).collect();
        self
    }

    pub(crate) fn describe(&self) -> String {
        let layers: Vec<String> = self
            .layers
            .iter()
            .map(|layer| format!("{} of {}", layer.layer, layer.dim))
            .collect();
        layers.join(", ")
    }
}
