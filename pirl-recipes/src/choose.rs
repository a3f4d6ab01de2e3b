//! Settings chosen for the images at hand, each with its reason.

use candle_core::Device;
use pirl_data::{ImageStatistics, Pack};

use crate::error::{RecipeError, Result};
use crate::fit::batch_size;
use crate::recipe::{Recipe, Setting};

/// Images that sizes and colours are told from.
const SAMPLE: usize = 500;
/// The largest shorter side of small images, in pixels.
const SMALL: usize = 64;

/// A setting, and why it has its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The key; "recipe" for the recipe that the others are changes of.
    pub key: &'static str,
    /// Its value, in words.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// A recipe that suits the images of `pack` and the device, with what was typed over it, and the choices
/// made, without those that were typed.
///
/// # Errors
/// [`RecipeError::Images`] if no image of a sample can be decoded, and those of [`Recipe::load`] for what
/// was typed.
pub fn choose(pack: &Pack, device: &Device, typed: &[Setting]) -> Result<(Recipe, Vec<Choice>)> {
    let images = ImageStatistics::of(pack, SAMPLE).map_err(|source| RecipeError::Images {
        what: "looking at the images",
        source,
    })?;
    let side = images.shorter_side;
    let (name, what) = match (side <= SMALL, device.is_cpu()) {
        (true, _) => ("cifar10", "small images"),
        (false, true) => ("photos", "photographs, on a CPU"),
        (false, false) => ("imagenet-resnet50-mlp", "photographs, on a GPU"),
    };
    let mut choices = vec![Choice {
        key: "recipe",
        value: name.to_owned(),
        reason: format!("{what}: the shorter side is {side} pixels"),
    }];
    let adapt = |recipe: &mut Recipe| -> Result<()> {
        adapt(recipe, &images, pack.len(), &mut choices);
        Ok(())
    };
    let recipe = Recipe::load_adjusted(name, adapt, typed)?;
    choices.retain(|choice| !typed.iter().any(|setting| setting.sets(choice.key)));
    Ok((recipe, choices))
}

fn adapt(recipe: &mut Recipe, images: &ImageStatistics, count: usize, choices: &mut Vec<Choice>) {
    let mut chosen = |key, value: String, reason: String| {
        choices.push(Choice { key, value, reason });
    };
    let side = images.shorter_side;
    let network = format!("{}, width {}", recipe.model.arch, recipe.model.width);
    let reason = "the recipe's".to_owned();
    chosen("model.arch", network, reason);
    if side < recipe.data.image_size {
        // A network of five halvings needs some pixels to halve.
        let view = side.max(12);
        let ratio = view as f64 / recipe.data.image_size as f64;
        let round = |pixels: usize| ((pixels as f64 * ratio).round() as usize).max(4);
        recipe.pretext.crop_size = round(recipe.pretext.crop_size).max(12);
        recipe.data.patch_size =
            round(recipe.data.patch_size).min(recipe.pretext.crop_size / recipe.pretext.grid);
        recipe.data.image_size = view;
        chosen(
            "data.image_size",
            view.to_string(),
            "as large as the images".to_owned(),
        );
        let patch = recipe.data.patch_size.to_string();
        chosen("data.patch_size", patch, "in proportion".to_owned());
    } else {
        let view = recipe.data.image_size.to_string();
        chosen(
            "data.image_size",
            view,
            format!("the recipe's; the images have {side}"),
        );
    }
    if side <= SMALL {
        let whole = side.max(recipe.data.image_size);
        (recipe.eval.resize, recipe.eval.crop) = (whole, whole);
        chosen(
            "eval.crop",
            whole.to_string(),
            "whole images, when they are judged".to_owned(),
        );
    }
    if images.gray {
        for view in [&mut recipe.transform.image, &mut recipe.transform.patch] {
            (view.saturation, view.hue, view.gray) = (0.0, 0.0, 0.0);
        }
        let reason = "the images are grey".to_owned();
        chosen(
            "transform.image",
            "no hue, no saturation".to_owned(),
            reason,
        );
    }
    (recipe.data.mean, recipe.data.std) = (images.mean, images.std);
    let mean = images.mean.map(|mean| format!("{mean:.3}")).join(", ");
    chosen(
        "data.mean",
        mean,
        format!("measured on {} images, as data.std", images.images),
    );
    let (batch, fits) = (recipe.train.batch_size, batch_size(count));
    if fits < batch {
        recipe.optim.lr *= fits as f64 / batch as f64;
        recipe.train.batch_size = fits;
        chosen(
            "train.batch_size",
            fits.to_string(),
            format!("for {count} images"),
        );
        let lr = format!("{:.4}", recipe.optim.lr);
        chosen("optim.lr", lr, "in proportion to the batch".to_owned());
    }
    let most = count.saturating_sub(1).max(1);
    if recipe.loss.negatives > most {
        recipe.loss.negatives = most;
        chosen(
            "loss.negatives",
            most.to_string(),
            "all other images".to_owned(),
        );
    }
}
