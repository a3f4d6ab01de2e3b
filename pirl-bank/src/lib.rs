//! pirl-bank
