//! Recipes: every setting of a PIRL training in one TOML file, and the training it describes.
//!
//! - A [`Recipe`] has every setting. [`Recipe::load`] takes one of [`RECIPES`] by its name or a file,
//!   which says only what differs from its base, and lays [`Setting`]s over it. Wrong keys and values are
//!   a [`RecipeError`], which names the nearest key or the range. [`key_notes`] says what each key means.
//! - [`fit`] lowers what asks for more images than there are. [`choose`] needs no recipe: it takes one that
//!   suits the images and the device, and gives each [`Choice`] with its reason.
//! - [`Inputs`] is the data side of the training, checked against the images; it makes the objective, the
//!   learner and the [`Pretraining`](pirl_train::Pretraining). [`pretext`] and [`loader`] make its parts.
//! - [`try_steps`] does a few steps, and its [`Trial`] says how many epochs fit into a time;
//!   [`fit_memory`] has no more images in the network at once than fit into memory.
//! - [`Recipe::extraction`], [`Recipe::changes`] and [`BatchNormStatistics`] say how its network is looked at
//!   afterwards.
//!
//! ```
//! # use std::borrow::Cow;
//! # use pirl_data::{DataError, Encoding, PackOptions, RawSample, Source, pack};
//! # struct Gray;
//! # impl Source for Gray {
//! #     fn len(&self) -> usize { 16 }
//! #     fn class_names(&self) -> &[String] { &[] }
//! #     fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
//! #         let encoding = Encoding::Raw { height: 16, width: 16, channels: 1 };
//! #         let bytes = (0..256).map(|at| (at * (index + 3) % 251) as u8).collect();
//! #         Ok(RawSample { name: index.to_string(), bytes: Cow::Owned(bytes), encoding, label: None, objects: None })
//! #     }
//! #     fn describe(&self) -> String { "grey".into() }
//! # }
//! use candle_core::Device;
//! use pirl_data::Pack;
//! use pirl_recipes::{Inputs, Recipe, RecipeError, Setting, fit};
//! use pirl_train::{Training, alone};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("photos");
//! # pack(&Gray, &path, &PackOptions::default(), &mut |_, _| {})?;
//! let pack = Pack::open(&path)?; // 16 images
//! let typed = ["train.epochs=1", "model.arch=resnet10", "model.width=0.25", "loader.workers=1"];
//! let typed = typed.map(|text| text.parse()).into_iter().collect::<Result<Vec<Setting>, _>>()?;
//! let fitted = |recipe: &mut Recipe| {
//!     fit(recipe, pack.len());
//!     Ok::<_, RecipeError>(())
//! };
//! let recipe = Recipe::load_adjusted("fashion-mnist", fitted, &typed)?;
//! assert_eq!(recipe.train.epochs, 1);
//! assert_eq!(recipe.loss.negatives, 15); // of the recipe's 4,096, all that there are
//!
//! let inputs = Inputs::new(recipe, pack, 1, &alone())?;
//! let learner = inputs.learner(inputs.pirl(&Device::Cpu)?, &[Device::Cpu])?;
//! let mut training = inputs.pretraining(learner)?;
//! assert!(training.step()?.loss.is_finite());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assemble;
mod choose;
mod error;
mod evaluate;
mod fit;
mod inputs;
mod recipe;
mod trial;

pub use assemble::{backbone_seed, loader, pretext, workers};
pub use choose::{Choice, choose};
pub use error::{KeyError, RecipeError};
pub use evaluate::BatchNormStatistics;
pub use fit::fit;
pub use inputs::Inputs;
pub use recipe::{
    BankConfig, BankInit, BankStorage, CheckpointConfig, Embedded, KeyNote, LoaderTable, LogConfig,
    LossConfig, LossKind, RECIPES, Recipe, Sampling, Setting, TrainConfig, TransformConfig,
    key_list, key_notes, recipe_list,
};
pub use trial::{MicroBatch, Trial, fit_memory, try_steps};
