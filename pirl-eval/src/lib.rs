//! pirl-eval
