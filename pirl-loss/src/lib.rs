//! PIRL's losses: what pulls the representation of an image and of its transformed copy together
//! and pushes those of other images away (Misra and van der Maaten, arXiv:1912.01991).
//!
//! - [`ContrastiveLoss`] compares a batch of embeddings with one bank row each (the positive) and
//!   with [`Negatives`]. [`Paper`] is the paper's equations (4) and (5), [`Nce`] the released
//!   code's noise-contrastive estimation with a fixed normalisation constant, [`InfoNce`] the
//!   cross-entropy of the positive.
//! - [`total_loss`] joins the terms of the two views, equation (6).
//! - [`cross_entropy`] is the loss of the covariant baselines, which predict the transformation
//!   instead, and of training with labels.
//!
//! In `f32` on a CPU, and with the feature `cuda` on a GPU, each loss is one fused Candle op: tiles of
//! logits from one matrix product, the closed-form gradient computed with the value, a second
//! product; never a batch x negatives x dimension gather. Elsewhere [`mod@reference`], made of
//! Candle's own operations, takes its place.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use pirl_loss::{ContrastiveLoss, Negatives, Paper, total_loss};
//!
//! let unit = |angle: f32| [angle.cos(), angle.sin()];
//! let image = Var::new(&[unit(0.1), unit(2.0)], &Device::Cpu)?; // f(I), two images
//! let patches = Var::new(&[unit(0.3), unit(2.2)], &Device::Cpu)?; // g(I^t)
//! let own_rows = Tensor::new(&[unit(0.0), unit(2.1)], &Device::Cpu)?; // m_I
//! let negatives = Negatives::Shared {
//!     rows: Tensor::new(&[unit(3.0), unit(2.1), unit(4.5)], &Device::Cpu)?,
//!     own: vec![None, Some(1)], // the second image was drawn among the negatives
//! };
//!
//! let loss = Paper::new(0.07)?;
//! let patch_term = loss.forward(&patches, &own_rows, &negatives)?;
//! let image_term = loss.forward(&image, &own_rows, &negatives)?;
//! let total = total_loss(0.5, &patch_term, &image_term)?;
//!
//! let gradients = total.backward()?;
//! assert_eq!(gradients.get(&patches).unwrap().dims(), [2, 2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod contrastive;
mod cross_entropy;
mod error;
mod fused;
mod inputs;
mod kind;
mod negatives;
pub mod reference;
mod rows;
mod total;

pub use contrastive::{ContrastiveLoss, InfoNce, Nce, Paper};
pub use cross_entropy::cross_entropy;
pub use error::LossError;
pub use negatives::Negatives;
pub use total::{ViewWeights, total_loss};
