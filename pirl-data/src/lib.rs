//! Images for PIRL: readers of public formats, the packed file they become, and the loader.
//!
//! A [`Source`] lists encoded images: an [`ImageFolder`], a [`List`], MNIST's [`Idx`] or [`Cifar`],
//! or, with the objects in them, [`Annotated`]. [`pack`] decodes each once, leaves out the broken ones, and
//! writes the rest to one safetensors file or several shards; a [`Pack`] maps those into memory and
//! returns samples without a copy.
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
//!
//! A [`Loader`] turns a pack into training batches: of each image an [`ImageView`] (I) and the views
//! of a [`Pretext`] task (I^t). They do not depend on the number of threads, and it starts at any step.
//!
//! ```
//! # use std::{borrow::Cow, sync::Arc};
//! # use pirl_data::{DataError, Encoding, PackOptions, RawSample, Source, pack};
//! # struct Gray;
//! # impl Source for Gray {
//! #     fn len(&self) -> usize { 8 }
//! #     fn class_names(&self) -> &[String] { &[] }
//! #     fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
//! #         let encoding = Encoding::Raw { height: 28, width: 28, channels: 1 };
//! #         Ok(RawSample { name: index.to_string(), bytes: Cow::Owned(vec![7; 784]), encoding, label: None, objects: None })
//! #     }
//! #     fn describe(&self) -> String { "grey".into() }
//! # }
//! use pirl_data::{
//!     DataConfig, ImageView, Loader, LoaderConfig, Pack, PretextConfig, ViewConfig, build_pretext,
//! };
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("clothes");
//! # pack(&Gray, &path, &PackOptions::default(), &mut |_, _| {})?;
//! let data = DataConfig { image_size: 28, patch_size: 12, ..DataConfig::default() };
//! let jigsaw = PretextConfig { crop_size: 36, ..PretextConfig::default() };
//! let loader = Loader::new(
//!     Arc::new(Pack::open(&path)?),
//!     ImageView::new(&data, &ViewConfig::default())?,
//!     Some(Arc::from(build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0)?)),
//!     LoaderConfig { batch_size: 4, ..LoaderConfig::default() },
//! )?;
//! for batch in loader.epoch(0, 0)? {
//!     let batch = batch?; // of bytes
//!     let images = batch.normalize.apply(&batch.images, &candle_core::Device::Cpu)?;
//!     assert_eq!(images.dims(), [4, 3, 28, 28]);
//!     assert_eq!(batch.transformed.unwrap().dims(), [4 * 9, 3, 12, 12]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`EvalView`] and [`eval_batches`] show images without chance; the operations are in
//! [`transform`]. [`Scratch::trace`] tells where a view came from, for those who show it to people.

mod config;
mod decode;
mod error;
mod image;
mod loader;
mod objects;
mod orientation;
mod pack;
mod pretext;
mod random;
mod source;
mod stages;
mod throughput;
pub mod transform;

pub use config::{DataConfig, PretextConfig, PretextKind, ViewConfig};
pub use error::DataError;
pub use image::Image;
pub use loader::{Batch, EpochIter, Loader, LoaderConfig, OnCorrupt, Share};
pub use objects::Objects;
pub use pack::{
    Counts, Depth, ImageStatistics, ObjectCounts, Pack, PackOptions, PackReport, PerClass,
    Reencode, Sides, Skipped, Tally, Verification, pack,
};
pub use pretext::{Pretext, build_pretext, permutations};
pub use random::sample_rng;
#[cfg(feature = "parquet")]
pub use source::Parquet;
pub use source::{
    Annotated, Cifar, Columns, Encoding, Idx, ImageFolder, Joined, Labels, List, OtherFormat, Part,
    RawSample, Source, SourceFormat, SourceOptions, Split, WebDataset, fetch_cifar10,
    fetch_fashion_mnist, open_source,
};
pub use stages::Stages;
pub use throughput::{Bottleneck, Throughput};
pub use transform::{EvalBatches, EvalView, ImageView, Normalize, Scratch, eval_batches};
