//! pirl-model
pub mod ops;
