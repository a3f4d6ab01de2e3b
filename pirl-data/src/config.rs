//! The tables of a recipe that this crate reads, with the paper's values as defaults.

use serde::{Deserialize, Serialize};

use crate::DataError;

/// `[data]`: sizes of the views and how pixels become numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Side of the view of the image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Images used, drawn without regard to class; 0 for all.
    pub limit: usize,
    /// Mean of red, green and blue, of values in 0..=1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, of values in 0..=1.
    pub std: [f32; 3],
}

impl Default for DataConfig {
    /// ImageNet's: 224, 64, all images, torchvision's mean and deviation.
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 64,
            limit: 0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}

impl DataConfig {
    pub(crate) fn check(&self) -> Result<(), DataError> {
        side("data.image_size", self.image_size)?;
        side("data.patch_size", self.patch_size)?;
        normalization(self.mean, self.std)
    }
}

/// `[transform.image]` or `[transform.patch]`: a random view, in the order of the fields.
///
/// The crop of `[transform.patch]` is the whole that is cut into patches; everything after it is
/// drawn for each patch on its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// Share of the image's area that a crop covers, least and most, in `(0, 1]`.
    pub scale: [f64; 2],
    /// Width over height of a crop, least and most.
    pub ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Probability of the colour jitter.
    pub jitter_probability: f64,
    /// Brightness is multiplied by a factor within `1 -+ brightness`.
    pub brightness: f64,
    /// The same for contrast.
    pub contrast: f64,
    /// The same for saturation.
    pub saturation: f64,
    /// Largest turn of the hue, as a share of the circle, in `[0, 0.5]`.
    pub hue: f64,
    /// Probability of posterize, sharpness, solarize and autocontrast, all four.
    pub photometric: f64,
    /// Probability of losing the colours.
    pub gray: f64,
    /// Probability of a Gaussian blur.
    pub blur_probability: f64,
    /// Its radius (standard deviation) in pixels, least and most.
    pub blur_radius: [f64; 2],
}

impl Default for ViewConfig {
    /// VISSL's view of the image for PIRL (`pirl_jigsaw_4node_resnet50.yaml`).
    fn default() -> Self {
        Self {
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            jitter_probability: 1.0,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.2,
            photometric: 0.66,
            gray: 0.2,
            blur_probability: 0.0,
            blur_radius: [0.1, 2.0],
        }
    }
}

impl ViewConfig {
    /// VISSL's view of the patches: the same, of crops that cover at least 0.6 of the image.
    pub fn patch() -> Self {
        Self {
            scale: [0.6, 1.0],
            ..Self::default()
        }
    }

    /// The same crops and flips, in the colours the image has.
    pub fn without_colors(&self) -> Self {
        Self {
            jitter_probability: 0.0,
            photometric: 0.0,
            gray: 0.0,
            blur_probability: 0.0,
            ..self.clone()
        }
    }

    /// Errors name the keys of `[transform.image]` or of `[transform.patch]`.
    pub(crate) fn check(&self, table: Table) -> Result<(), DataError> {
        macro_rules! key {
            ($name:literal) => {
                match table {
                    Table::Image => concat!("transform.image.", $name),
                    Table::Patch => concat!("transform.patch.", $name),
                }
            };
        }
        range(key!("scale"), self.scale, f64::MIN_POSITIVE, 1.0)?;
        range(key!("ratio"), self.ratio, 1e-3, 1e3)?;
        range(key!("blur_radius"), self.blur_radius, 0.0, 1e3)?;
        for (key, value, most) in [
            (key!("flip"), self.flip, 1.0),
            (key!("jitter_probability"), self.jitter_probability, 1.0),
            (key!("brightness"), self.brightness, 1e3),
            (key!("contrast"), self.contrast, 1e3),
            (key!("saturation"), self.saturation, 1e3),
            (key!("hue"), self.hue, 0.5),
            (key!("photometric"), self.photometric, 1.0),
            (key!("gray"), self.gray, 1.0),
            (key!("blur_probability"), self.blur_probability, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(DataError::Setting {
                    key,
                    reason: format!("{value} does not lie between 0 and {most}"),
                });
            }
        }
        Ok(())
    }
}

/// Which table of a recipe a [`ViewConfig`] is.
#[derive(Clone, Copy)]
pub(crate) enum Table {
    Image,
    Patch,
}

/// `pretext.kind`: how the transformed view is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PretextKind {
    /// Patches in a random order.
    Jigsaw,
    /// The image turned by 0, 90, 180 or 270 degrees.
    Rotation,
    /// Patches, in a random order, of the turned image.
    JigsawRotation,
    /// No transformed view (NPID).
    None,
}

/// `[pretext]`: the transformation the representation should not depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretextConfig {
    /// Which one.
    pub kind: PretextKind,
    /// Cells of the jigsaw along a side; 3 for the paper's nine patches.
    pub grid: usize,
    /// Orders in use: 0 for all, otherwise a fixed set of this many, far apart from each other.
    pub permutations: usize,
    /// Side of the crop that is cut into `grid * grid` cells, in pixels.
    pub crop_size: usize,
}

impl Default for PretextConfig {
    /// The paper's: a 255-pixel crop in nine cells of 85, all 9! orders.
    fn default() -> Self {
        Self {
            kind: PretextKind::Jigsaw,
            grid: 3,
            permutations: 0,
            crop_size: 255,
        }
    }
}

/// Largest side of a view: a batch of these still fits a machine's memory.
const MAX_SIDE: usize = 8192;

pub(crate) fn side(key: &'static str, value: usize) -> Result<(), DataError> {
    if (1..=MAX_SIDE).contains(&value) {
        return Ok(());
    }
    Err(DataError::Setting {
        key,
        reason: format!("{value} pixels; it must lie between 1 and {MAX_SIDE}"),
    })
}

pub(crate) fn normalization(mean: [f32; 3], std: [f32; 3]) -> Result<(), DataError> {
    if !mean.iter().all(|m| m.is_finite()) {
        return Err(DataError::Setting {
            key: "data.mean",
            reason: format!("{mean:?} is not three numbers"),
        });
    }
    if !std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(DataError::Setting {
            key: "data.std",
            reason: format!("{std:?} is not three numbers above 0"),
        });
    }
    Ok(())
}

fn range(key: &'static str, [low, high]: [f64; 2], least: f64, most: f64) -> Result<(), DataError> {
    if least <= low && low <= high && high <= most {
        return Ok(());
    }
    let least = if least == f64::MIN_POSITIVE {
        0.0
    } else {
        least
    };
    Err(DataError::Setting {
        key,
        reason: format!(
            "[{low}, {high}] is not a range from least to most within {least} to {most}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_and_a_missing_one_the_default() {
        let view: ViewConfig = serde_json::from_str(r#"{"flip": 0.25}"#).unwrap();
        assert_eq!(
            view,
            ViewConfig {
                flip: 0.25,
                ..ViewConfig::default()
            }
        );
        let error = serde_json::from_str::<ViewConfig>(r#"{"flop": 0.25}"#).unwrap_err();
        assert!(error.to_string().contains("flop"), "{error}");
    }

    #[test]
    fn a_bad_value_names_its_key() {
        let mut view = ViewConfig::patch();
        view.hue = 0.7;
        let error = view.check(Table::Patch).unwrap_err().to_string();
        assert!(error.starts_with("transform.patch.hue: 0.7"), "{error}");
        for scale in [[0.0, 1.0], [0.5, 0.4], [0.5, 1.5], [f64::NAN, 1.0]] {
            let view = ViewConfig {
                scale,
                ..ViewConfig::default()
            };
            let error = view.check(Table::Image).unwrap_err().to_string();
            assert!(error.starts_with("transform.image.scale"), "{error}");
        }
    }
}
