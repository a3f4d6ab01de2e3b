//! Settings chosen for the images at hand, each with its reason.

use std::collections::BTreeMap;

use candle_core::Device;
use pirl_data::{ImageStatistics, Pack};
use pirl_model::ModelConfig;
use toml::Value;

use crate::error::{RecipeError, Result};
use crate::fit::{Lowered, lower};
use crate::recipe::{Recipe, Setting};

/// Images that sizes and colours are told from.
const SAMPLE: usize = 500;
/// The largest shorter side of small images, in pixels.
const SMALL: usize = 64;
/// The smallest view, in pixels: a network of five halvings needs some to halve.
const LEAST_VIEW: usize = 12;

/// A setting, and why it has its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The key; "recipe" for the recipe that the others are changes of.
    pub key: &'static str,
    /// Its value, as TOML.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// A key, and why it has its value.
type Reasons = Vec<(&'static str, String)>;

/// A recipe that suits the images of `pack` and the device, with what was typed over it, and the choices
/// made, without those that were typed. `network` is that of weights to begin with, if there are any.
///
/// # Errors
/// [`RecipeError::Images`] if no image of a sample can be decoded, and those of [`Recipe::load`] for what
/// was typed.
pub fn choose(
    pack: &Pack,
    device: &Device,
    network: Option<&ModelConfig>,
    typed: &[Setting],
) -> Result<(Recipe, Vec<Choice>)> {
    let images =
        ImageStatistics::of(pack, SAMPLE, &mut |_, _| {}, &|| false).map_err(|source| {
            RecipeError::Images {
                what: "looking at the images",
                source,
            }
        })?;
    let side = images.shorter_side.median;
    let (name, what) = match (side <= SMALL, device.is_cpu()) {
        (true, _) => ("cifar10", "small images"),
        (false, true) => ("photos", "photographs, on a CPU"),
        (false, false) => ("imagenet-resnet50-mlp", "photographs, on a GPU"),
    };
    let mut reasons = Reasons::new();
    let adapt = |recipe: &mut Recipe| -> Result<()> {
        reasons.extend(of_network(recipe, network));
        reasons.extend(of_views(recipe, &images));
        reasons.extend(of_count(recipe, pack.len()));
        Ok(())
    };
    let recipe = Recipe::load_adjusted(name, adapt, typed)?;
    let values: BTreeMap<String, Value> = recipe.flat()?.into_iter().collect();
    let choice = |(key, reason): (&'static str, String)| {
        let typed = typed.iter().any(|setting| setting.sets(key));
        let value = as_written(values.get(key).filter(|_| !typed)?);
        Some(Choice { key, value, reason })
    };
    let mut choices = vec![Choice {
        key: "recipe",
        value: name.to_owned(),
        reason: format!("{what}: the shorter side is {side} pixels"),
    }];
    choices.extend(reasons.into_iter().filter_map(choice));
    Ok((recipe, choices))
}

fn of_network(recipe: &mut Recipe, network: Option<&ModelConfig>) -> Reasons {
    let reason = match network {
        Some(network) => {
            let model = &mut recipe.model;
            (model.arch, model.width, model.stem) = (network.arch, network.width, network.stem);
            "that of the weights to begin with"
        }
        None => "the recipe's",
    };
    let keys = ["model.arch", "model.width", "model.stem"];
    keys.map(|key| (key, reason.to_owned())).into()
}

/// Sizes, and how colours change.
fn of_views(recipe: &mut Recipe, images: &ImageStatistics) -> Reasons {
    let (data, pretext) = (&mut recipe.data, &mut recipe.pretext);
    let side = images.shorter_side.median;
    let mut reasons = Reasons::new();
    if side < data.image_size {
        let view = side.max(LEAST_VIEW);
        let ratio = view as f64 / data.image_size as f64;
        let scaled = |pixels: usize| ((pixels as f64 * ratio).round() as usize).max(4);
        pretext.crop_size = scaled(pretext.crop_size).max(LEAST_VIEW);
        data.patch_size = scaled(data.patch_size).min(pretext.crop_size / pretext.grid);
        data.image_size = view;
        reasons.push(("data.image_size", "as large as the images".to_owned()));
        reasons.push(("data.patch_size", "in proportion".to_owned()));
    } else {
        let reason = format!("the recipe's; the images have {side}");
        reasons.push(("data.image_size", reason));
    }
    if side <= SMALL {
        let whole = side.max(data.image_size);
        (recipe.eval.resize, recipe.eval.crop) = (whole, whole);
        let reason = "whole images, when they are judged".to_owned();
        reasons.push(("eval.crop", reason));
    }
    if images.gray {
        for view in [&mut recipe.transform.image, &mut recipe.transform.patch] {
            (view.saturation, view.hue, view.gray) = (0.0, 0.0, 0.0);
        }
        let reason = "the images are grey, as saturation and gray, and of patches".to_owned();
        reasons.push(("transform.image.hue", reason));
    }
    data.channels = images.mean.len();
    if data.channels != 3 {
        reasons.push(("data.channels", "those of the pack".to_owned()));
    }
    let rounded = |values: &[f64]| {
        let values = values.iter();
        values
            .map(|value| ((value * 1e3).round() / 1e3) as f32)
            .collect()
    };
    (data.mean, data.std) = (rounded(&images.mean), rounded(&images.std));
    for key in ["data.mean", "data.std"] {
        reasons.push((key, format!("measured on {} images", images.images)));
    }
    reasons
}

/// What there must be enough images for.
fn of_count(recipe: &mut Recipe, images: usize) -> Reasons {
    let lowered = lower(recipe, images, (images / 2).max(1)).into_iter();
    let reason = |lowered: Lowered| (lowered.key, format!("for {images} images"));
    lowered.map(reason).collect()
}

/// A value as a recipe would have it: single precision by its few digits.
fn as_written(value: &Value) -> String {
    match value {
        Value::Float(x) if f64::from(*x as f32) == *x => format!("{:?}", *x as f32),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(as_written).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use pirl_data::Sides;

    use super::*;

    fn images(side: usize, gray: bool) -> ImageStatistics {
        let sides = Sides {
            least: side,
            median: side,
            greatest: side,
        };
        ImageStatistics {
            images: 9,
            broken: Vec::new(),
            duplicates: 0,
            shorter_side: sides,
            longer_side: sides,
            gray,
            mean: vec![0.12345; 3],
            std: vec![0.2; 3],
        }
    }

    #[test]
    fn views_are_no_larger_than_the_images_and_grey_ones_keep_their_colours() {
        let mut recipe = Recipe::load("cifar10", &[]).unwrap();
        let before = recipe.clone();
        let reasons = of_views(&mut recipe, &images(16, true));
        let Recipe {
            data,
            pretext,
            transform,
            eval,
            ..
        } = &recipe;
        assert_eq!((data.image_size, eval.resize, eval.crop), (16, 16, 16));
        assert!(data.patch_size * pretext.grid <= pretext.crop_size);
        for view in [&transform.image, &transform.patch] {
            assert_eq!((view.hue, view.saturation, view.gray), (0.0, 0.0, 0.0));
        }
        assert_eq!(data.mean, [0.123; 3]);
        assert!(reasons.iter().any(|(key, _)| *key == "transform.image.hue"));

        let mut recipe = before.clone();
        of_views(&mut recipe, &images(32, false));
        assert_eq!(recipe.data.image_size, before.data.image_size);
        assert_eq!(recipe.transform, before.transform);
    }

    #[test]
    fn numbers_are_written_as_recipes_have_them() {
        let mean = [0.487f32, 0.5].map(|x| Value::Float(f64::from(x)));
        assert_eq!(as_written(&Value::Array(mean.to_vec())), "[0.487, 0.5]");
        assert_eq!(as_written(&Value::Float(0.0125)), "0.0125");
        assert_eq!(as_written(&Value::String("a".to_owned())), "\"a\"");
    }
}
