//! How a recipe's network is looked at after its training.

use candle_core::Device;
use pirl_data::{DataConfig, Pack, PretextKind, build_pretext};
use pirl_eval::{Change, EvalError, Extraction, Untrained, recompute_batch_norm};
use pirl_model::{Backbone, ResNet};
use pirl_train::TrainError;
use serde::Serialize;

use crate::assemble::backbone_seed;
use crate::error::RecipeError;
use crate::recipe::Recipe;

/// Stream of the images that batch-norm statistics are recomputed on, apart from the probes' own.
const BATCH_NORM_SEED: u64 = 0x6270;

impl Recipe {
    /// How features are read.
    pub fn extraction(&self) -> Extraction {
        Extraction {
            pool: self.eval.pool.clone(),
            layers: self.eval.layers.clone(),
            batch_size: self.eval.batch_size,
            workers: self.loader.workers,
            ..Extraction::new(self.eval_view())
        }
    }

    /// Says which images precise batch-norm statistics are computed on.
    pub fn batch_norm_seed(&self) -> u64 {
        self.seed ^ BATCH_NORM_SEED
    }

    /// The network before its training, for the baselines of probes.
    ///
    /// # Errors
    /// [`RecipeError::Train`] if the network cannot be made.
    pub fn untrained(&self, device: &Device) -> Result<Untrained, RecipeError> {
        let backbone = ResNet::new(&self.model, backbone_seed(self), device);
        let settings = serde_json::to_string(&self.model);
        Ok(Untrained {
            backbone: Box::new(backbone.map_err(TrainError::from)?),
            settings: settings.map_err(|error| TrainError::Other(error.into()))?,
            batch_norm_images: self.eval.precise_batch_norm,
            seed: self.batch_norm_seed(),
        })
    }

    /// Changes of images whose effect on features is measured: crops and colours of its views, and the
    /// pretext task's transformation, if it has one.
    ///
    /// # Errors
    /// [`EvalError::Data`] for settings that do not fit together.
    pub fn changes(&self) -> Result<Vec<Change>, EvalError> {
        let (data, view) = (&self.data, &self.transform.image);
        // Of the plain view's size, so that nothing but the change is compared.
        let plain = DataConfig {
            image_size: self.eval_view().crop,
            ..data.clone()
        };
        let mut changes = vec![
            Change::crop(&plain, view)?,
            Change::photometric(self.eval_view(), &plain, view)?,
        ];
        let name = match self.pretext.kind {
            PretextKind::None => return Ok(changes),
            PretextKind::Jigsaw => "jigsaw",
            PretextKind::Rotation => "rotation",
            PretextKind::JigsawRotation => "jigsaw-rotation",
        };
        changes.push(Change {
            name: name.to_owned(),
            views: build_pretext(&self.pretext, data, &self.transform.patch, self.seed)?,
        });
        Ok(changes)
    }
}

/// Which precise batch-norm statistics a network has, as results say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BatchNormStatistics {
    /// Whether it has any.
    pub used: bool,
    /// On how many plain images they were computed.
    pub images: usize,
    /// Whether they came with the weights.
    pub saved: bool,
}

impl BatchNormStatistics {
    /// Recomputes those of `backbone` on images of `pack` if the recipe asks for it
    /// (`eval.precise_batch_norm`), unless the weights came with precise ones, of `saved` images. Calls
    /// `begun` before.
    ///
    /// # Errors
    /// Those of [`recompute_batch_norm`].
    pub fn of(
        backbone: &dyn Backbone,
        recipe: &Recipe,
        pack: &Pack,
        extraction: &Extraction,
        saved: Option<usize>,
        begun: impl FnOnce(),
    ) -> Result<Self, EvalError> {
        let images = match (saved, recipe.eval.precise_batch_norm) {
            (Some(images), _) => images,
            (None, 0) => 0,
            (None, images) => {
                begun();
                recompute_batch_norm(backbone, pack, extraction, images, recipe.batch_norm_seed())?
            }
        };
        Ok(Self {
            used: images > 0,
            images,
            saved: saved.is_some(),
        })
    }
}
