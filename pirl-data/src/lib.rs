//! pirl-data
