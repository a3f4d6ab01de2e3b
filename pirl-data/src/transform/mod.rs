//! The operations that views are made of: each on 8-bit pixels, in place, as Pillow does it with RGB.
//! Channels that are not RGB are treated alike, and what is of colour alone leaves them as they are.
//!
//! Everything random is drawn by [`crate::ImageView`] and the pretext tasks; the operations here
//! take their parameters.
//!
//! ```
//! use pirl_data::{Image, transform};
//!
//! let mut image = Image::new(2, 1, vec![200, 100, 0, 10, 20, 30])?;
//! transform::brightness(&mut image, 0.5);
//! assert_eq!(image.pixels, [100, 50, 0, 5, 10, 15]);
//! # Ok::<(), pirl_data::DataError>(())
//! ```

mod augment;
mod blur;
mod color;
mod crop;
mod eval_view;
mod hue;
mod lanes;
mod normalize;
mod orient;
mod photometric;
mod planes;
mod resize;
mod view;

pub use blur::gaussian_blur;
pub use color::{brightness, contrast, grayscale, saturation};
pub use crop::{Crop, RandomResizedCrop};
pub use hue::hue;
pub use normalize::Normalize;
pub use orient::{flip, quarter_turns};
pub use photometric::{autocontrast, posterize, sharpness, solarize};
pub use resize::{Resizer, resize};

pub(crate) use augment::Augment;
pub(crate) use color::luma;
pub(crate) use eval_view::thread_pool;
pub(crate) use normalize::write_planes;
pub(crate) use planes::{AsTheyAre, Colors, FromRgb, split_planes};
pub(crate) use resize::resize_part;
pub(crate) use view::{check_channels, check_output, cut};

pub use eval_view::{EvalBatches, EvalView, eval_batches};
pub use view::{ImageView, Patch, Scratch, Trace};
