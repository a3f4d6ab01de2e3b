use std::io;
use std::path::PathBuf;

use pirl_data::DataError;
use pirl_eval::EvalError;

/// `std::result::Result` with this crate's error.
pub type Result<T> = std::result::Result<T, ReportError>;

/// What can go wrong while results are drawn or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// An image cannot be read or made into a view.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A result cannot be put into words.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// There is nothing to draw.
    #[error("{picture}: expected {expected}, found none")]
    Empty {
        /// The picture.
        picture: &'static str,
        /// What is drawn there.
        expected: &'static str,
    },
    /// Two lists that belong together have different lengths.
    #[error("{picture}: {expected} {what} need as many rows, but there are {found}")]
    Rows {
        /// The picture.
        picture: &'static str,
        /// The entries of the first list.
        what: &'static str,
        /// How many of them there are.
        expected: usize,
        /// Entries of the second list.
        found: usize,
    },
    /// A detection of a class that has no name.
    #[error("a detection has class {label}, but there are {classes} classes")]
    Class {
        /// The class.
        label: usize,
        /// Classes allowed are `0..classes`.
        classes: usize,
    },
    /// A detection whose box or score is infinite or not a number.
    #[error("a detection has the box {bounds:?} and the score {score}; did training diverge?")]
    NotFinite {
        /// Left, top, right and bottom, in pixels.
        bounds: [f32; 4],
        /// Its score.
        score: f32,
    },
    /// A picture of more pixels than one can look at.
    #[error("a picture of {width} x {height} pixels is too large; show fewer images")]
    TooLarge {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// The drawing library refused.
    #[error("cannot draw {what}: {reason}")]
    Draw {
        /// The chart or picture.
        what: String,
        /// The library's reason.
        reason: String,
    },
    /// A file is no result of an evaluation.
    #[error("{path} is not the result.json of an evaluation: it lacks its figures or its packs")]
    NoResult {
        /// The file.
        path: PathBuf,
    },
    /// A result cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason, or where it stops being JSON.
        source: io::Error,
    },
    /// A result is of other weights than it is to stand beside.
    #[error("{path} is of other weights, {found}: give --results of these weights")]
    OtherWeights {
        /// The file.
        path: PathBuf,
        /// Where its weights were, quoted.
        found: String,
    },
    /// A page cannot be written.
    #[error("cannot write the page: {0}")]
    Page(#[from] askama::Error),
    /// The operating system refused to write a file.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}
