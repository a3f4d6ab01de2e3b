//! Settings of the views and the pretext task, with the paper's values as defaults.

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::Image;
use crate::pretext::permutation::check_permutations;

/// Sizes of the views, and how pixels become numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Side of the view of the image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Number of images used, drawn at random whatever their class; 0 for all.
    pub limit: usize,
    /// Whether shards of the pack may be on the machines of other ranks: each rank then draws its part of a
    /// batch from those that it has.
    pub partial: bool,
    /// Channels of the images: 3 of RGB, up to 16 of others, which
    /// [`PackOptions::channels`](crate::PackOptions::channels) packs.
    pub channels: usize,
    /// Mean of each channel, of values in 0..=1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of values in 0..=1.
    pub std: Vec<f32>,
}

impl Default for DataConfig {
    /// ImageNet's: 224, 64, all images, torchvision's mean and deviation.
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 64,
            limit: 0,
            partial: false,
            channels: 3,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }
}

impl DataConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_side("image_size", self.image_size)?;
        check_side("patch_size", self.patch_size)?;
        check_channels(self.channels)?;
        check_normalization(self.channels, &self.mean, &self.std)
    }
}

/// A random view, in the order of the fields.
///
/// Of patches, the crop is what is cut into them; everything after it is drawn for each patch on its
/// own.
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
    /// Probability of applying posterize, sharpness, solarize and autocontrast, all four together.
    pub photometric: f64,
    /// Probability of becoming grey.
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

    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let [least, most] = self.scale;
        check(
            "scale",
            format!("{:?}", self.scale),
            0.0 < least && least <= most && most <= 1.0,
            "must be two numbers within (0, 1], the least first",
        )?;
        let [least, most] = self.ratio;
        check(
            "ratio",
            format!("{:?}", self.ratio),
            1e-3 <= least && least <= most && most <= 1e3,
            "must be two numbers within [0.001, 1000], the least first",
        )?;
        let [least, most] = self.blur_radius;
        check(
            "blur_radius",
            format!("{:?}", self.blur_radius),
            0.0 <= least && least <= most && most <= 1e3,
            "must be two numbers within [0, 1000], the least first",
        )?;
        for (field, value) in [
            ("flip", self.flip),
            ("jitter_probability", self.jitter_probability),
            ("photometric", self.photometric),
            ("gray", self.gray),
            ("blur_probability", self.blur_probability),
        ] {
            let is_probability = (0.0..=1.0).contains(&value);
            check(field, value, is_probability, "must lie in [0, 1]")?;
        }
        for (field, value) in [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ] {
            let fits = (0.0..=1e3).contains(&value);
            check(field, value, fits, "must lie in [0, 1000]")?;
        }
        let fits = (0.0..=0.5).contains(&self.hue);
        check("hue", self.hue, fits, "must lie in [0, 0.5]")
    }
}

/// How the transformed view is made.
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

/// The transformation the representation should not depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretextConfig {
    /// Which one.
    pub kind: PretextKind,
    /// Cells of the jigsaw along a side; 3 for the paper's nine patches.
    pub grid: usize,
    /// Permutations in use: 0 for all, otherwise a fixed set of this many with large Hamming distances.
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

impl PretextConfig {
    /// Checks the fields that `kind` uses.
    ///
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        if matches!(self.kind, PretextKind::Rotation | PretextKind::None) {
            return Ok(());
        }
        check_side("crop_size", self.crop_size)?;
        // 16 x 16 patches leave 16 pixels each of a 255-pixel crop; the labels fit a byte.
        let fits = (1..=16).contains(&self.grid);
        check("grid", self.grid, fits, "must lie between 1 and 16")?;
        check_permutations(self.grid * self.grid, self.permutations)
    }
}

/// Largest side of a view: a batch of these still fits a machine's memory.
const MAX_SIDE: usize = 8192;

/// An error unless a view can have sides of so many pixels.
pub(crate) fn check_side(field: &str, pixels: usize) -> Result<(), SettingError> {
    let fits = (1..=MAX_SIDE).contains(&pixels);
    let expected = format!("must lie between 1 and {MAX_SIDE} pixels");
    check(field, pixels, fits, &expected)
}

/// An error unless images can have so many channels.
pub(crate) fn check_channels(channels: usize) -> Result<(), SettingError> {
    let fits = (1..=Image::MAX_CHANNELS).contains(&channels);
    let expected = format!("must lie between 1 and {}", Image::MAX_CHANNELS);
    check("channels", channels, fits, &expected)
}

/// An error unless pixels of so many channels can be normalised by these.
pub(crate) fn check_normalization(
    channels: usize,
    mean: &[f32],
    std: &[f32],
) -> Result<(), SettingError> {
    check_channels(channels)?;
    let each = |what: &str| {
        format!(
            "must be {channels} {what}, as `pirl data stats` prints them of {channels} channels"
        )
    };
    let numbers = mean.len() == channels && mean.iter().all(|m| m.is_finite());
    check("mean", format!("{mean:?}"), numbers, &each("numbers"))?;
    let positive = std.len() == channels && std.iter().all(|s| s.is_finite() && *s > 0.0);
    check(
        "std",
        format!("{std:?}"),
        positive,
        &each("numbers above 0"),
    )
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
    fn a_bad_value_names_its_field() {
        let mut view = ViewConfig::patch();
        view.hue = 0.7;
        let error = view.check().unwrap_err().to_string();
        assert_eq!(error, "hue = 0.7: must lie in [0, 0.5]");
        for scale in [[0.0, 1.0], [0.5, 0.4], [0.5, 1.5], [f64::NAN, 1.0]] {
            let view = ViewConfig {
                scale,
                ..ViewConfig::default()
            };
            let error = view.check().unwrap_err().to_string();
            assert!(error.starts_with("scale = ["), "{error}");
        }
    }
}
