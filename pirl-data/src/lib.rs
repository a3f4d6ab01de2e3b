//! Images for PIRL: readers of public formats, the packed file they become, and the loader.
mod config;
mod decode;
mod error;
mod image;
mod loader;
mod pack;
mod pretext;
mod source;
mod transform;

pub use error::DataError;
pub use image::Image;
