//! Anchors: the boxes of fixed sizes and shapes around every cell of a feature map that the region
//! proposal network scores and corrects.

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

use super::boxes::BBox;

/// Sizes and shapes of the anchors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnchorConfig {
    /// Square roots of the areas, pixels; 32, 64, 128, 256, 512 by default.
    pub sizes: Vec<f32>,
    /// Height by width; 0.5, 1, 2 by default.
    pub aspect_ratios: Vec<f32>,
    /// Pixels of the image per cell of the feature map; 16, that of res4, by default.
    pub stride: usize,
}

impl Default for AnchorConfig {
    fn default() -> Self {
        Self {
            sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
            aspect_ratios: vec![0.5, 1.0, 2.0],
            stride: 16,
        }
    }
}

impl AnchorConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (field, values) in [
            ("sizes", &self.sizes),
            ("aspect_ratios", &self.aspect_ratios),
        ] {
            let fits = !values.is_empty() && values.iter().all(|&v| v > 0.0 && v.is_finite());
            let found = format!("{values:?}");
            check(field, found, fits, "must be one or more numbers above 0")?;
        }
        check("stride", self.stride, self.stride > 0, "must be at least 1")
    }

    /// Anchors around each cell of a map.
    pub fn per_cell(&self) -> usize {
        self.sizes.len() * self.aspect_ratios.len()
    }

    /// The anchors of a map of `(height, width)` cells: row by row, within a row cell by cell, within
    /// a cell size by size, within a size ratio by ratio.
    ///
    /// Cell `(y, x)` has its anchors centred on pixel `(y, x) * stride`, without half a cell's
    /// offset, as in detectron2. Anchors reaching out of the image are kept.
    pub fn anchors(&self, (height, width): (usize, usize)) -> Vec<BBox> {
        let cell = self.cell_anchors();
        let mut anchors = Vec::with_capacity(height * width * cell.len());
        for (row, column) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let (y, x) = ((row * self.stride) as f32, (column * self.stride) as f32);
            let shifted = |&[x0, y0, x1, y1]: &BBox| [x + x0, y + y0, x + x1, y + y1];
            anchors.extend(cell.iter().map(shifted));
        }
        anchors
    }

    /// The anchors around the origin.
    fn cell_anchors(&self) -> Vec<BBox> {
        let mut anchors = Vec::with_capacity(self.per_cell());
        for &size in &self.sizes {
            for &ratio in &self.aspect_ratios {
                let (size, ratio) = (f64::from(size), f64::from(ratio));
                let width = (size * size / ratio).sqrt();
                let (x, y) = ((width / 2.0) as f32, (ratio * width / 2.0) as f32);
                anchors.push([-x, -y, x, y]);
            }
        }
        anchors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |change: fn(&mut AnchorConfig)| {
            let mut config = AnchorConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(AnchorConfig::default().check().is_ok());
        assert!(refused(|c| c.sizes.clear()).contains("sizes = []"));
        assert!(refused(|c| c.sizes[1] = f32::NAN).contains("sizes"));
        assert!(refused(|c| c.aspect_ratios[0] = -1.0).contains("aspect_ratios"));
        assert!(refused(|c| c.stride = 0).contains("stride"));
    }
}
