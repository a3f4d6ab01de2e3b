//! What can be wrong with a loss's input.

/// An error of a loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// The temperature is not a positive, finite number.
    #[error("the temperature is {value}; it must be positive and finite (the paper's is 0.07)")]
    Temperature {
        /// The value given.
        value: f64,
    },
    /// The weight of the patch term is not in `[0, 1]`.
    #[error("lambda, the weight of the transformed view's term, is {value}; it must lie in [0, 1]")]
    Lambda {
        /// The value given.
        value: f64,
    },
    /// NCE was told that the data set is empty.
    #[error("NCE needs the number of images in the data set, at least 1")]
    DatasetSize,
    /// NCE's normalisation constant is not a finite number.
    #[error("the logarithm of NCE's constant Z is {value}; it must be finite")]
    LogZ {
        /// The value given.
        value: f64,
    },
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
         draw more (recipe key `loss.negatives`)"
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
