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
pub use pack::{Pack, PackOptions, PackReport, Skipped, pack};
pub use source::{
    Cifar, Encoding, Idx, ImageFolder, List, RawSample, Source, Split, fetch_fashion_mnist,
};
