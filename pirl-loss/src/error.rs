//! What can be wrong with a loss's input.

use pirl_core::SettingError;

/// An error of a loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A tensor or a list has the wrong shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// The shape needed.
        expected: String,
        /// The shape given.
        found: String,
    },
    /// A tensor has a type the losses do not compute in, or differs from the query's.
    #[error("{what}: type {found}, expected {expected}")]
    DType {
        /// Which argument.
        what: &'static str,
        /// The type needed.
        expected: &'static str,
        /// The type given.
        found: &'static str,
    },
    /// The batch is empty.
    #[error("the loss of an empty batch is not defined")]
    EmptyBatch,
    /// An image has no negative left to be compared with.
    #[error(
        "image {image} of the batch has no negatives: {drawn} drawn, its own row masked out; \
         draw more"
    )]
    NoNegatives {
        /// Position in the batch.
        image: usize,
        /// Negatives before masking.
        drawn: usize,
    },
    /// An index points outside what it indexes.
    #[error("{what}: index {index} at position {position} is not below {limit}")]
    Index {
        /// Which argument.
        what: &'static str,
        /// The index.
        index: u32,
        /// Where in the list it stands.
        position: usize,
        /// The number of rows, columns or classes.
        limit: usize,
    },
    /// An operation of Candle failed.
    #[error("loss: {0}")]
    Candle(#[from] candle_core::Error),
}
