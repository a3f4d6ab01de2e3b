//! Images for PIRL: readers of public formats, the packed file they become, and the loader.
//!
//! A [`Source`] lists encoded images: an [`ImageFolder`], a [`List`], MNIST's [`Idx`] or [`Cifar`].
//! [`pack`] decodes each once, leaves out the broken ones, and writes the rest to one safetensors
//! file or several shards; a [`Pack`] maps those into memory and hands out samples without a copy.
//!
//! ```
//! use pirl_data::{Image, ImageFolder, Pack, PackOptions, pack};
//!
//! # let folder = tempfile::tempdir()?;
//! # let (images, output) = (folder.path().join("images"), folder.path().join("pets"));
//! # for class in ["cat", "dog"] {
//! #     std::fs::create_dir_all(images.join(class))?;
//! #     image::RgbImage::from_pixel(8, 6, image::Rgb([9, 8, 7])).save(images.join(class).join("1.png"))?;
//! # }
//! let report = pack(
//!     &ImageFolder::open(&images)?,
//!     &output,
//!     &PackOptions::default(),
//!     &mut |done, total| eprintln!("{done} of {total}"),
//! )?;
//! assert!(report.skipped.is_empty());
//!
//! let pets = Pack::open(&output)?;
//! assert_eq!(pets.class_names(), ["cat", "dog"]);
//! assert_eq!(pets.label(1), Some(1));
//! let image: Image = pets.decode(1)?;
//! assert_eq!((image.width, image.height), (8, 6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod decode;
mod error;
mod image;
mod loader;
mod pack;
mod pretext;
mod preview;
mod random;
mod source;
pub mod transform;

pub use config::{DataConfig, PretextConfig, PretextKind, ViewConfig};
pub use error::DataError;
pub use image::Image;
pub use loader::{Batch, EpochIter, Loader, LoaderConfig, OnCorrupt};
pub use pack::{Pack, PackOptions, PackReport, Skipped, pack};
pub use pretext::{Pretext, build_pretext, permutations};
pub use preview::preview_sheet;
pub use source::{
    Cifar, Encoding, Idx, ImageFolder, List, RawSample, Source, Split, fetch_fashion_mnist,
};
pub use transform::{EvalBatches, EvalView, ImageView, Scratch, eval_batches};
