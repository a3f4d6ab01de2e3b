//! What can be wrong with a recipe, and with what it is to train on.

use std::path::PathBuf;

use pirl_core::SettingError;
use pirl_data::DataError;
use pirl_loss::LossError;
use pirl_train::TrainError;

/// A result, with this crate's error unless another is named.
pub(crate) type Result<T, E = RecipeError> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A name that no embedded recipe has.
    #[error("no recipe is called {name:?}; {}", names_instead(*nearest, known))]
    UnknownRecipe {
        /// The name.
        name: String,
        /// The recipe with the most similar name, if any is similar.
        nearest: Option<&'static str>,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A recipe's file is not there.
    #[error("no recipe file {path}")]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// A trial has no room for its files.
    #[error("cannot make a temporary folder for a trial: {source}")]
    TrialFolder {
        /// The system's reason.
        source: std::io::Error,
    },
    /// A recipe's file cannot be read.
    #[error("cannot read recipe {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A recipe is not TOML.
    #[error("recipe {recipe} is not TOML: {}", source.to_string().trim())]
    NotToml {
        /// Its name or file.
        recipe: String,
        /// Where it stops being TOML.
        source: Box<toml::de::Error>,
    },
    /// Too many recipes that are each other's base, perhaps in a circle.
    #[error("recipe {recipe}: base {base:?} is the {deepest}th in a row; do they name each other?")]
    TooManyBases {
        /// The last recipe that was read.
        recipe: String,
        /// Its base.
        base: String,
        /// Recipes that may build on each other.
        deepest: usize,
    },
    /// A `base` that is not a string.
    #[error("recipe {recipe}: base must be the name of a recipe, found {found}")]
    BaseNotAName {
        /// The recipe.
        recipe: String,
        /// The TOML type of its `base`.
        found: &'static str,
    },
    /// A recipe or a [`Setting`](crate::Setting) has a key that cannot be set.
    #[error("{place}: {source}")]
    Key {
        /// "recipe NAME", or "--set" for a setting.
        place: String,
        /// What is wrong with the key.
        source: KeyError,
    },
    /// A value is none of those its key takes.
    #[error("recipe {recipe}: {}", source.to_string().trim())]
    Value {
        /// The recipe's name or file.
        recipe: String,
        /// The value, and those that the key takes.
        source: Box<toml::de::Error>,
    },
    /// A value is outside its range.
    #[error("recipe {recipe}: {source}")]
    OutOfRange {
        /// The recipe's name or file.
        recipe: String,
        /// The key, its value and its range.
        source: SettingError,
    },
    /// Text that is not a setting.
    #[error("{text:?} is not KEY=VALUE, such as train.epochs=8")]
    NotASetting {
        /// The text.
        text: String,
    },
    /// A recipe could not be written as TOML.
    #[error("writing the recipe as TOML: {0}")]
    ToToml(#[from] toml::ser::Error),
    /// A batch larger than the data set.
    #[error("train.batch_size is {batch_size}, but there are only {images} images")]
    BatchTooLarge {
        /// Images in a step.
        batch_size: usize,
        /// Images there are.
        images: usize,
    },
    /// More negatives than there are other images, or none.
    #[error(
        "loss.negatives is {negatives}; it must lie between 1 and {}, one less than the images",
        images.saturating_sub(1)
    )]
    Negatives {
        /// Negatives of an image.
        negatives: usize,
        /// Images there are.
        images: usize,
    },
    /// Training with labels, on images without.
    #[error(
        "loss.kind = \"supervised\" learns from labels, but the images of --data have none; pack \
         them with labels, an image folder with a sub-folder for each class for instance"
    )]
    NoLabels,
    /// Training with labels, on images of one class.
    #[error(
        "loss.kind = \"supervised\" learns to tell classes apart, but all images of --data are of \
         one"
    )]
    OneClass,
    /// Training with labels, and a transformation that it has no use for.
    #[error(
        "loss.kind = \"supervised\" learns from labels, not from transformed views: set \
         pretext.kind = \"none\""
    )]
    SupervisedPretext,
    /// A covariant baseline without a transformation.
    #[error(
        "loss.kind = \"covariant\" predicts a transformation, so pretext.kind cannot be \"none\""
    )]
    NoPretext,
    /// A covariant baseline on inputs that were made without a transformation.
    #[error("there is no transformation to predict")]
    NothingToPredict,
    /// A covariant baseline whose transformation has no classes.
    #[error(
        "loss.kind = \"covariant\" predicts which of a few orders the patches are in: set \
         pretext.permutations, to 100 for instance"
    )]
    NoPermutations,
    /// Negatives drawn for each image, and a bank that is not with the one network.
    #[error(
        "loss.sampling = \"per-image\" compares with rows all over the bank, which must be in \
         the memory of the one device: set loss.sampling = \"shared\", or give one --device, one rank and \
         bank.on_host = false"
    )]
    BankElsewhere,
    /// A rank that has opened other images.
    #[error("rank {rank} has another pack than rank 0: give --data the same images on every rank")]
    OtherPack {
        /// The first such rank.
        rank: usize,
    },
    /// A pack whose shards are not all on this machine.
    #[error(
        "{path} is not on this machine: put all shards there, or set data.partial = true, with which each rank \
         draws its part of a batch from those that it has"
    )]
    Partial {
        /// The first shard that is elsewhere.
        path: PathBuf,
    },
    /// A bank shared out over ranks, and settings that need all of it on each.
    #[error(
        "bank.sharded shares the bank's rows out over the ranks: it goes with loss.kind = \"paper\" or \
         \"infonce\", loss.sampling = \"shared\", one --device a rank, and as many parts of a batch on \
         each rank (train.micro_batch = 0 sees to that)"
    )]
    Sharded,
    /// Batch norm over the parts of all ranks, which have not as many each.
    #[error(
        "model.batch_norm = \"synced\" needs as many parts of a batch on each rank: set train.micro_batch = 0, \
         for equal shares, or so that it cuts train.batch_size into a multiple of {ranks} parts"
    )]
    Synced {
        /// How many ranks there are.
        ranks: usize,
    },
    /// A bank in a file, and settings that need it in memory.
    #[error(
        "bank.storage = \"mapped\" goes with bank.init = \"random\", loss.sampling = \"shared\", and on \
         several ranks bank.sharded = true"
    )]
    Mapped,
    /// The images do not suit a part of the recipe.
    #[error("{what}: {source}")]
    Images {
        /// The part, or what was done: "data.limit", "looking at the images".
        what: &'static str,
        /// What was refused.
        source: DataError,
    },
    /// Views, the loader, or a pack.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A loss refused its settings.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The objective, the learner, or a step.
    #[error(transparent)]
    Train(Box<TrainError>),
}

impl From<TrainError> for RecipeError {
    fn from(error: TrainError) -> Self {
        Self::Train(Box::new(error))
    }
}

fn names_instead(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => format!("there are {}, or the path of a TOML file", known.join(", ")),
    }
}

/// A key that cannot be set to the value given for it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No setting has this name.
    #[error("no setting is called {key:?}; {}", keys_instead(nearest.as_deref()))]
    Unknown {
        /// The name.
        key: String,
        /// The key with the most similar name, if any is similar.
        nearest: Option<String>,
    },
    /// A table, given a single value.
    #[error("{key} is a table, not a {found}; set one of its keys")]
    Table {
        /// The table.
        key: String,
        /// The TOML type of the value.
        found: &'static str,
    },
    /// A value of another type.
    #[error("{key} must be of type {expected}, found the {found} {value}")]
    Type {
        /// The key.
        key: String,
        /// Its TOML type.
        expected: &'static str,
        /// The TOML type of the value.
        found: &'static str,
        /// The value, as TOML.
        value: String,
    },
}

fn keys_instead(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => "`pirl recipes --keys` lists them".to_owned(),
    }
}
