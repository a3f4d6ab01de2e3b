//! What can go wrong with a bank.

use std::path::PathBuf;

use pirl_core::SettingError;

/// An error of the memory bank or of a sampler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BankError {
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A bank must have rows and columns, and its rows must be countable in 32 bits.
    #[error(
        "a bank of {rows} rows of {dim} numbers is not possible: both must be at least 1, and rows at most {}",
        u32::MAX
    )]
    Size {
        /// Rows asked for.
        rows: usize,
        /// Numbers in a row.
        dim: usize,
    },
    /// A tensor does not have the shape or type an operation needs.
    #[error("{what}: expected {expected}, found {found}")]
    Tensor {
        /// Which argument.
        what: &'static str,
        /// The shape and type needed.
        expected: String,
        /// The shape and type given.
        found: String,
    },
    /// A row of the bank was asked for that does not exist.
    #[error(
        "image index {index} is outside the bank of {rows} rows; was the bank made for other data?"
    )]
    Index {
        /// The index.
        index: u32,
        /// Rows in the bank.
        rows: usize,
    },
    /// One update names a row twice, so its new value would depend on the order.
    #[error("image index {index} is twice in one update of the bank; update a row once a step")]
    Duplicate {
        /// The index.
        index: u32,
    },
    /// A row is not a unit vector, as every row of a bank must be.
    #[error("row {row} of {what} has length {norm}, not 1")]
    NotUnit {
        /// Where the row is.
        what: String,
        /// Its position.
        row: usize,
        /// Its L2 norm, which may be NaN.
        norm: f32,
    },
    /// An embedding given to an update holds a NaN or an infinity.
    #[error("the embedding of image {index} is not finite; the bank is unchanged")]
    NotFinite {
        /// The image.
        index: u32,
    },
    /// The file holds a bank of another size.
    #[error(
        "{path}: holds a bank of {found_rows} rows of {found_dim}, expected {expected_rows} rows of {expected_dim}; \
         it belongs to other data or other settings"
    )]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Rows the run needs: one an image.
        expected_rows: usize,
        /// Numbers in a row the run needs.
        expected_dim: usize,
        /// Rows in the file.
        found_rows: usize,
        /// Numbers in a row of the file.
        found_dim: usize,
    },
    /// The file is not a saved bank.
    #[error("{path}: not a saved memory bank: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("{path}: cannot {action} the memory bank: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An operation of Candle failed.
    #[error("memory bank: {0}")]
    Candle(#[from] candle_core::Error),
}
