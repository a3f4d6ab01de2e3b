//! What can be wrong with a study.

use std::io;
use std::path::{Path, PathBuf};

use pirl_data::DataError;
use pirl_eval::EvalError;
use pirl_recipes::RecipeError;
use pirl_report::ReportError;

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, StudyError>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// A name that no built-in study has, and no file.
    #[error(
        "no study is called {name:?}, and there is no such file; there are {}",
        crate::builtin::names()
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// A study's file is no study.
    #[error("study {study}: {}", source.to_string().trim())]
    Malformed {
        /// Its name or file.
        study: String,
        /// The place and what was expected there.
        source: Box<toml::de::Error>,
    },
    /// A study that asks for what cannot be.
    #[error("study {study}: {reason}")]
    Invalid {
        /// Its name or file.
        study: String,
        /// What, and where in the file.
        reason: String,
    },
    /// A run that no training can be made of.
    #[error("study {study}, {run}: {source}")]
    Run {
        /// Its name or file.
        study: String,
        /// The figure, the series and the value.
        run: String,
        /// What is wrong with its settings, or with the images for them.
        source: Box<RecipeError>,
    },
    /// A pair of packs that no probe can compare.
    #[error("--probe-train {train}: {source}")]
    Probes {
        /// The first of the pair.
        train: PathBuf,
        /// Why not.
        source: Box<EvalError>,
    },
    /// The folder has another study.
    #[error(
        "{folder} holds another study: {difference}; give the same study and the same images, or choose another --out"
    )]
    OtherStudy {
        /// The folder.
        folder: PathBuf,
        /// The first thing in which the two differ.
        difference: String,
    },
    /// The folder is none of a study.
    #[error("{folder} is not empty and not the folder of a study; choose another --out")]
    NotAStudy {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk is too small.
    #[error("{folder}: the study needs about {needed} MiB there, and {free} MiB are free")]
    Disk {
        /// The folder.
        folder: PathBuf,
        /// What the runs take, MiB.
        needed: u64,
        /// What there is, MiB.
        free: u64,
    },
    /// A file or folder of the study cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of the study is not as it was written.
    #[error("{path} is not as a study writes it: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops being so.
        reason: String,
    },
    /// A result that is not laid out as a result is.
    #[error("{path}: {reason}; delete it, and the study makes it again")]
    Outcome {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Measuring how long a run takes failed.
    #[error("measuring {run}: {source}")]
    Trial {
        /// The run.
        run: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An evaluation cannot be tried.
    #[error(transparent)]
    Eval(Box<EvalError>),
    /// A recipe is wrong.
    #[error(transparent)]
    Recipe(Box<RecipeError>),
    /// The report cannot be drawn.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl From<EvalError> for StudyError {
    fn from(error: EvalError) -> Self {
        Self::Eval(Box::new(error))
    }
}

impl From<RecipeError> for StudyError {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(Box::new(error))
    }
}

/// Names the file or folder that something could not be done with.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StudyError {
    let path = path.to_owned();
    move |source| StudyError::Io { path, source }
}
