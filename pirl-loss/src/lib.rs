//! pirl-loss
