//! A detection data set made of the items of a classification data set.
//!
//! Real detection sets are large and need an account or hours of download. [`compose_scenes`] cuts the
//! items of a labelled [`Pack`](pirl_data::Pack) out of their dark background and paints them at several
//! scales, over each other and among clutter: a detection task that a CPU can learn. The scenes are written
//! in the folder layout of PASCAL VOC, so they are read as a real set is.
//!
//! ```
//! use pirl_data::{Annotated, ImageFolder, Pack, PackOptions, pack};
//! use pirl_scenes::{SceneConfig, compose_scenes};
//!
//! # let folder = tempfile::tempdir()?;
//! # let images = folder.path().join("images");
//! # for class in ["disc", "square"] {
//! #     std::fs::create_dir_all(images.join(class))?;
//! #     let inside = |x: u32, y: u32| class == "square" || (x as f64 - 13.5).hypot(y as f64 - 13.5) < 8.0;
//! #     let item = |x, y| if (4..24).contains(&x) && (4..24).contains(&y) && inside(x, y) { 240 } else { 0 };
//! #     let picture = image::GrayImage::from_fn(28, 28, |x, y| image::Luma([item(x, y)]));
//! #     picture.save(images.join(class).join("1.png"))?;
//! # }
//! let items = folder.path().join("items");
//! pack(&ImageFolder::open(&images)?, &items, &PackOptions::default(), &mut |_, _| {})?;
//!
//! let scenes = folder.path().join("scenes");
//! let config = SceneConfig { scenes: 3, ..SceneConfig::default() };
//! let report = compose_scenes(&Pack::open(&items)?, &scenes, "train", &config, &mut |_, _| {})?;
//! assert_eq!(report.scenes, 3);
//! assert!(report.objects >= 3);
//!
//! let set = folder.path().join("set");
//! pack(&Annotated::voc(&[scenes], "train")?, &set, &PackOptions::default(), &mut |_, _| {})?;
//! assert_eq!(Pack::open(&set)?.class_names(), ["disc", "square"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod composition;
mod error;
mod item;
mod scenes;
mod voc;

pub use error::SceneError;
pub use scenes::{SceneConfig, SceneReport, compose_scenes};
