//! A recipe's step and loader, to be timed.

use std::sync::Arc;

use candle_core::Device;
use pirl_data::{Loader, Normalize, Pack, Share};
use pirl_recipes::{Inputs, LossKind, Recipe};
use pirl_train::{Objective, alone};

use crate::parity::Result;
use crate::speed::{TimedStep, Workload, noise_batch, timed_step};

/// The training that a recipe describes.
pub struct RecipeWorkload<'a> {
    recipe: Recipe,
    device: &'a Device,
}

impl<'a> RecipeWorkload<'a> {
    /// On `device`; whole batches, of all images.
    pub fn new(mut recipe: Recipe, device: &'a Device) -> Self {
        recipe.data.limit = 0;
        recipe.train.micro_batch = 0;
        Self { recipe, device }
    }

    fn steps<O: Objective + 'static>(&self, inputs: &Inputs, objective: O) -> Result<TimedStep> {
        let Recipe { data, train, .. } = &inputs.recipe;
        let learner = inputs.learner(objective, std::slice::from_ref(self.device))?;
        let normalize = Normalize::new(data.mean.as_slice(), data.std.as_slice())?;
        let pretext = inputs.pretext.as_deref();
        let batch = noise_batch(train.batch_size, data.image_size, pretext, normalize)?;
        Ok(timed_step(learner, batch, self.device))
    }
}

impl Workload for RecipeWorkload<'_> {
    fn device(&self) -> &Device {
        self.device
    }

    /// The bank has a row for each image, so there must be enough to draw from.
    fn images(&self, batch_size: usize) -> usize {
        self.recipe.loss.negatives + 1 + batch_size
    }

    fn step(&self, pack: Pack, batch_size: usize) -> Result<TimedStep> {
        let mut recipe = self.recipe.clone();
        recipe.train.batch_size = batch_size;
        let inputs = Inputs::new(recipe, pack, 1, &alone())?;
        match inputs.recipe.loss.kind {
            LossKind::Covariant => self.steps(&inputs, inputs.covariant()?),
            LossKind::Supervised => self.steps(&inputs, inputs.supervised()?),
            _ => self.steps(&inputs, inputs.pirl(self.device)?),
        }
    }

    fn loader(&self, pack: Arc<Pack>) -> Result<(Loader, usize)> {
        let mut recipe = self.recipe.clone();
        recipe.train.batch_size = recipe.train.batch_size.min(pack.len());
        recipe.loader.workers = 0;
        let pretext = pirl_recipes::pretext(&recipe)?;
        let loader = pirl_recipes::loader(&recipe, &pack, pretext, 1, Share::default())?;
        Ok((loader, pirl_recipes::workers(&recipe)))
    }
}
