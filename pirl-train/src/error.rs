//! What can go wrong while a network is trained.

use std::path::PathBuf;

use pirl_bank::BankError;
use pirl_core::SettingError;
use pirl_data::DataError;
use pirl_loss::LossError;
use pirl_model::ModelError;

use crate::identity::Identity;

/// An error of somebody else's code: an observer, an objective.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A result, with this crate's error unless another is named.
pub(crate) type Result<T, E = TrainError> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Making a batch failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A network, its optimiser or its weights.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A loss refused what it was given.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The memory bank or its sampler.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// No device was given to train on.
    #[error("there is no device to train on; give at least one")]
    NoDevice,
    /// A batch came without some of its images.
    #[error("{found} images of a batch of {expected}")]
    IncompleteBatch {
        /// Images that came.
        found: usize,
        /// Images of the whole batch.
        expected: usize,
    },
    /// An objective that learns from transformed views got none.
    #[error("the batch has no transformed views; give the loader a pretext task")]
    NoTransformedViews,
    /// An image of a batch has no label.
    #[error("image {index} has no label, of {labels} labels given")]
    NoLabel {
        /// The image, by its place in the pack.
        index: u32,
        /// Labels given to the objective.
        labels: usize,
    },
    /// Negatives drawn for each image are rows all over the bank, which is on another device.
    #[error(
        "negatives drawn for each image on its own are rows all over the bank, which must be on the \
         one device of the networks; draw shared negatives, or use that device alone"
    )]
    BankElsewhere,
    /// A loss that is not a number.
    #[error(
        "the loss of step {step} is {loss} (learning rate {lr}); nothing of this step was kept"
    )]
    LossNotFinite {
        /// The step, counted from 1.
        step: u64,
        /// The loss.
        loss: f32,
        /// Its learning rate.
        lr: f64,
    },
    /// A part of a batch on a device of several.
    #[error("on {device}: {source}")]
    OnDevice {
        /// The device.
        device: String,
        /// What went wrong there.
        source: Box<TrainError>,
    },
    /// The thread of a device could not be started, or is gone.
    #[error("the thread of {device} {what}")]
    Thread {
        /// The device.
        device: String,
        /// What happened to it.
        what: String,
    },
    /// A checkpoint does not fit what it is to be resumed with.
    #[error("cannot go on from {path}: {reason}")]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A checkpoint of another training.
    #[error("{path} is of another training: {found}, not {expected}")]
    OtherTraining {
        /// The checkpoint.
        path: PathBuf,
        /// What it is of.
        found: Identity,
        /// What is to be resumed.
        expected: Identity,
    },
    /// A run that began with other weights.
    #[error(
        "the run {folder} began with {found}, not {given}; leave the weights out to go on with it"
    )]
    OtherInitialWeights {
        /// The folder of the run.
        folder: PathBuf,
        /// What it began with.
        found: String,
        /// What was given.
        given: String,
    },
    /// A checkpoint could not be written; earlier ones are whole.
    #[error("no checkpoint of step {step} was written: {source}")]
    NotSaved {
        /// The step.
        step: u64,
        /// The newest checkpoint there is.
        earlier: Option<PathBuf>,
        /// The cause.
        source: BoxError,
    },
    /// The variables of a launcher, or what joins the ranks it started, do not work out.
    #[error("{launcher}: {reason}")]
    Launch {
        /// What started this process.
        launcher: &'static str,
        /// What does not work out, and the way out.
        reason: String,
    },
    /// Another rank has ended because of an error.
    #[error("rank {rank} has ended: {reason}")]
    RankFailed {
        /// The rank.
        rank: usize,
        /// Its error.
        reason: String,
    },
    /// Ranks did not come to what all do together.
    #[error(
        "{} did not come within {seconds} s: dead, stopped, or much slower than the others; the last \
         checkpoint is whole, go on from it with --resume",
        named(.ranks)
    )]
    RanksMissing {
        /// Those that did not come; none if all answer, but the network between them does not.
        ranks: Vec<usize>,
        /// How long they were waited for.
        seconds: f64,
    },
    /// Ranks that compute the same have other numbers.
    #[error(
        "after step {step} the {what} of {} differ from the other ranks': its memory, processor or \
         program is another or at fault; leave its machine out and go on from the last checkpoint",
        named(.ranks)
    )]
    RanksDiffer {
        /// Those that differ from most.
        ranks: Vec<usize>,
        /// Steps done.
        step: u64,
        /// What was compared.
        what: &'static str,
    },
    /// A network, or what belongs to it, that is another one on rank 0.
    #[error(
        "rank 0 has a network of {expected} numbers, this rank one of {found}; give all ranks the same weights \
         and settings"
    )]
    OtherTensors {
        /// Numbers here.
        found: usize,
        /// Numbers on rank 0.
        expected: usize,
    },
    /// Ranks whose batch norms are synced, and that have not as many parts of a batch at the same time.
    #[error(
        "synced batch norm needs as many parts of a batch at a time on each rank: rank {rank} has {found}, rank \
         0 has {expected}; cut batches into a multiple of the ranks (train.micro_batch = 0 sees to that), and \
         give each rank as many devices"
    )]
    UnevenParts {
        /// The first rank that has not what rank 0 has.
        rank: usize,
        /// What it has at a time.
        found: String,
        /// What rank 0 has.
        expected: String,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// "read", "write", "list", "remove".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An error of somebody else's code.
    #[error(transparent)]
    Other(BoxError),
}

/// "rank 3", "ranks 1, 2", or what it means that none is missing.
fn named(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match numbers.as_slice() {
        [] => "messages between the ranks".to_owned(),
        [rank] => format!("rank {rank}"),
        _ => format!("ranks {}", numbers.join(", ")),
    }
}

impl TrainError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
