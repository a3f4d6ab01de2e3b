//! pirl-model
