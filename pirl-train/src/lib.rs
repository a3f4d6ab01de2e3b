//! The method: what a backbone is trained for, the step, the loop, and what is kept of a run.
//!
//! PIRL (Misra and van der Maaten, arXiv:1912.01991) trains a backbone so that the representation of an
//! image equals that of its transformed copy and differs from those of other images.
//!
//! - An [`Objective`] is what a backbone is trained for: [`Pirl`], which without a transformed view is
//!   NPID; [`Covariant`], the baseline that predicts the transformation; [`Supervised`]. It owns the
//!   heads, and turns a part of a batch into terms of a loss.
//! - A [`Learner`] joins a backbone, an objective and an optimiser, on one device or several, and takes
//!   steps.
//! - [`Pretraining`] feeds a learner from a loader. It is a [`Training`], as are the trainings of
//!   `pirl-eval`: [`run`] takes any of them to its last step, with [`Checkpoints`] that resume to the
//!   bit, and tells an [`Observer`] what happens. Nothing here knows a terminal.
//! - [`Ranks`] are the processes of one run. A learner is told of them ([`LearnerBuilder::ranks`]); a training
//!   with a step of its own shares it by [`share_state`], [`sum_gradients`] and their neighbours.
//!
//! ```
//! # use std::{borrow::Cow, sync::Arc};
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
//! use pirl_data::{
//!     DataConfig, ImageView, Loader, LoaderConfig, Pack, PretextConfig, ViewConfig, build_pretext,
//! };
//! use pirl_model::{Arch, ModelConfig, ResNet, Stem};
//! use pirl_train::{Learner, Pirl, Pretraining, PretrainingConfig, Training};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("photos");
//! # pack(&Gray, &path, &PackOptions::default(), &mut |_, _| {})?;
//! let data = DataConfig { image_size: 16, patch_size: 6, ..DataConfig::default() };
//! let jigsaw = PretextConfig { crop_size: 24, ..PretextConfig::default() };
//! let jigsaw = build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0)?;
//! let objective = Pirl::builder(16, jigsaw.views()).negatives(8).build()?;
//! let loader = Loader::new(
//!     Arc::new(Pack::open(&path)?),
//!     ImageView::new(&data, &ViewConfig::default())?,
//!     Some(Arc::from(jigsaw)),
//!     LoaderConfig { batch_size: 8, ..LoaderConfig::default() },
//! )?;
//! let network =
//!     ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Small, ..Default::default() };
//! let learner = Learner::builder(move |device| ResNet::new(&network, 0, device), objective).build()?;
//!
//! let mut training = Pretraining::new(learner, loader, &PretrainingConfig { epochs: 1, ..Default::default() })?;
//! while training.done() < training.steps() {
//!     assert!(training.step()?.loss.is_finite());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batches;
mod checkpoint;
mod collective;
mod error;
mod health;
mod identity;
mod initial_weights;
mod learner;
mod log_command;
mod metrics_file;
mod networks;
mod objective;
mod part;
mod pretraining;
mod record;
mod reduction;
mod run;
mod run_packs;
mod scaled_optimizer;
mod shared_training;
mod streams;
mod synced;
mod training;
mod worker;

pub use batches::Batches;
pub use checkpoint::{BACKBONE, Checkpoints, MODEL, OPTIMIZER, State, run_of};
#[cfg(feature = "nccl")]
pub use collective::Nccl;
pub use collective::{
    Alone, Collective, Join, Pending, Place, Ranks, Threads, alone, any, join, launched,
};
pub use error::{BoxError, TrainError};
pub use health::{Health, Trouble};
pub use identity::Identity;
pub use initial_weights::InitialWeights;
pub use learner::{Learner, LearnerBuilder, StepLosses};
pub use log_command::LogCommand;
pub use metrics_file::MetricsFile;
pub use networks::{Networks, move_to};
pub use objective::bank::{Bank, MappedFile};
pub use objective::covariant::Covariant;
pub use objective::negatives::gather_negatives;
pub use objective::pirl::{Pirl, PirlBuilder, PirlHeads, Positives, Rows, read_image_head};
pub use objective::sharded::ShardedKind;
pub use objective::supervised::Supervised;
pub use objective::{Module, Objective, PartOutcome, Terms};
pub use pretraining::{Pretraining, PretrainingConfig};
pub use run::{Ended, Observer, Row, RunOptions, resume, run, save};
pub use run_packs::RunPacks;
pub use scaled_optimizer::ScaledOptimizer;
pub use shared_training::{
    ensure_alike, share_optimizer, share_state, share_steps, sum_gradients, sum_values,
};
pub use streams::Stream;
pub use training::{Metric, Step, Training};
