//! Drawing for pictures that people look at: boxes, lines and words on a [`Canvas`], and
//! [`contact_sheet`]s.
//!
//! ```
//! use pirl_data::{Image, draw};
//!
//! let photograph = Image::new(40, 30, vec![90; 40 * 30 * 3])?;
//! let (panel, scale) = draw::fit(&photograph, 80)?;
//! let mut canvas = draw::Canvas::on(panel)?;
//! canvas.outline([5.0, 5.0, 20.0, 15.0].map(|edge| edge * scale), 2, 0, draw::color(0));
//! let panel = draw::caption(&canvas.into_image(), "a box", draw::INK);
//! let sheet = draw::contact_sheet(&[panel.clone(), panel], 2, 4);
//! assert_eq!(sheet.width, 80 + 4 + 80);
//! # Ok::<(), pirl_data::DataError>(())
//! ```

mod canvas;
mod sheet;

pub use canvas::{Canvas, Color, INK, LETTER, PAPER, color};
pub use sheet::{caption, contact_sheet, enlarge, fit};
