//! Settings fitted to the images at hand: those of a recipe where there are fewer images than it was
//! made for, and without a recipe all of them, each with its reason.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::Device;
use pirl_data::{ImageStatistics, Pack};
use pirl_model::Precision;
use pirl_train::{Learner, Objective, Training};

use crate::assemble::Inputs;
use crate::recipe::{Recipe, Setting};

/// Images that sizes and colours are told from.
const SAMPLE: usize = 500;
/// The largest shorter side of small images, in pixels.
const SMALL: usize = 64;
/// Most epochs where there is time for more: the paper's, whose last doubling gained little.
const MOST_EPOCHS: usize = 800;
/// Of the time given, what is left to the steps; saving and the report need the rest.
const SHARE_OF_STEPS: f64 = 0.95;
/// Steps of a trial, at most, the first not counted; and the time after which it ends.
const TRIAL_STEPS: u64 = 12;
const TRIAL_TIME: Duration = Duration::from_secs(8);

/// A setting, and why it has its value.
pub(crate) struct Choice {
    key: &'static str,
    value: String,
    reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, reason } = self;
        write!(f, "  {key:<18} {value:<24} {reason}")
    }
}

/// Lowers what asks for more images than there are, and warns of it. To be called before what the user
/// typed is applied: that is never changed.
pub(crate) fn fit(recipe: &mut Recipe, images: usize) {
    let lowered = |key: &str, from: String, to: String| {
        tracing::warn!("{key} is {to} instead of the recipe's {from}: there are {images} images");
    };
    if recipe.data.limit > images {
        let limit = recipe.data.limit.to_string();
        lowered("data.limit", limit, "0 (all)".to_owned());
        recipe.data.limit = 0;
    }
    let images = match recipe.data.limit {
        0 => images,
        limit => limit,
    };
    let (batch, fits) = (recipe.train.batch_size, batch_size(images));
    if batch > images {
        let lr = recipe.optim.lr;
        recipe.train.batch_size = fits;
        recipe.optim.lr = lr * fits as f64 / batch as f64;
        lowered("train.batch_size", batch.to_string(), fits.to_string());
        lowered("optim.lr", lr.to_string(), recipe.optim.lr.to_string());
    }
    let most = images.saturating_sub(1).max(1);
    if recipe.loss.kind.is_contrastive() && recipe.loss.negatives > most {
        lowered(
            "loss.negatives",
            recipe.loss.negatives.to_string(),
            most.to_string(),
        );
        recipe.loss.negatives = most;
    }
}

/// The largest power of two that makes at least two batches of so many images.
fn batch_size(images: usize) -> usize {
    1 << (images / 2).max(1).ilog2()
}

/// A recipe that suits the images of `pack` and the device, with what was typed over it, and the choices
/// made.
pub(crate) fn choose(
    pack: &Pack,
    device: &Device,
    typed: &[Setting],
) -> Result<(Recipe, Vec<Choice>)> {
    let images = ImageStatistics::of(pack, SAMPLE).context("looking at the images")?;
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
    let adapt = |recipe: &mut Recipe| {
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
    let reason = "the recipe's, as the following unless a reason is given".to_owned();
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
    if recipe.train.precision == Precision::F32 {
        chosen(
            "train.precision",
            "f32".to_owned(),
            "right everywhere".to_owned(),
        );
    }
}

/// What a step takes.
pub(crate) struct Trial {
    /// Seconds of a step.
    pub(crate) seconds: f64,
    pub(crate) steps_per_epoch: u64,
}

/// Does a few steps of the pre-training that `inputs` describes, and forgets them.
pub(crate) fn try_steps<O: Objective>(inputs: Inputs, learner: Learner<O>) -> Result<Trial> {
    let mut training = inputs.pretraining(learner)?;
    let steps_per_epoch = training.steps_per_epoch();
    // The first one allocates the buffers.
    training.step()?;
    let (started, before) = (Instant::now(), training.done());
    while training.done() < training.steps()
        && training.done() - before < TRIAL_STEPS
        && started.elapsed() < TRIAL_TIME
    {
        training.step()?;
    }
    let steps = (training.done() - before).max(1);
    Ok(Trial {
        seconds: started.elapsed().as_secs_f64() / steps as f64,
        steps_per_epoch,
    })
}

impl Trial {
    /// Epochs that fit into `time`, at least 1.
    pub(crate) fn epochs(&self, time: Duration) -> usize {
        let epoch = self.seconds * self.steps_per_epoch as f64;
        let epochs = time.as_secs_f64() * SHARE_OF_STEPS / epoch.max(f64::MIN_POSITIVE);
        (epochs as usize).clamp(1, MOST_EPOCHS)
    }

    /// How long so many epochs take.
    pub(crate) fn time(&self, epochs: usize) -> Duration {
        Duration::from_secs_f64(self.seconds * (self.steps_per_epoch * epochs as u64) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_at_most_half_of_the_images() {
        let found = [1, 3, 4, 60, 500, 1024, 50_000].map(batch_size);
        assert_eq!(found, [1, 1, 2, 16, 128, 512, 16_384]);
    }

    #[test]
    fn a_recipe_is_fitted_to_fewer_images_and_what_was_typed_is_not() {
        let load = |images, settings: &[&str]| {
            let typed: Vec<Setting> = settings.iter().map(|s| s.parse().unwrap()).collect();
            let adjust = |recipe: &mut Recipe| {
                fit(recipe, images);
                Ok(())
            };
            Recipe::load_adjusted("fashion-mnist", adjust, &typed).unwrap()
        };
        let same = load(60_000, &[]);
        assert_eq!(same, Recipe::load("fashion-mnist", &[]).unwrap());
        let few = load(100, &[]);
        let found = (few.data.limit, few.train.batch_size, few.loss.negatives);
        assert_eq!(found, (0, 32, 99));
        assert!((few.optim.lr / same.optim.lr - 32.0 / 128.0).abs() < 1e-9);
        assert_eq!(load(100, &["loss.negatives=4096"]).loss.negatives, 4096);
    }

    #[test]
    fn epochs_fill_the_time() {
        let trial = Trial {
            seconds: 0.5,
            steps_per_epoch: 20,
        };
        assert_eq!(trial.epochs(Duration::from_secs(1000)), 95);
        assert_eq!(trial.epochs(Duration::from_secs(1)), 1);
        assert_eq!(trial.epochs(Duration::from_secs(1 << 40)), MOST_EPOCHS);
        assert_eq!(trial.time(95), Duration::from_secs(950));
    }
}
