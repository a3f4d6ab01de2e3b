//! The networks on one device.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use pirl_data::Batch;
use pirl_model::{Backbone, Mode, Upload};

use crate::error::{Result, TrainError};
use crate::synced::Member;

/// The networks on one device: the backbone, and the heads of an objective.
pub struct Networks<H> {
    pub(crate) backbone: Box<dyn Backbone>,
    pub(crate) heads: H,
    /// The networks on other devices and ranks, with which batch norm is synced.
    pub(crate) synced: Option<Arc<Member>>,
    upload: Upload,
}

impl<H> Networks<H> {
    pub(crate) fn new(backbone: Box<dyn Backbone>, heads: H, device: &Device) -> Result<Self> {
        Ok(Self {
            backbone,
            heads,
            synced: None,
            upload: Upload::new(device)?,
        })
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        self.upload.device()
    }

    /// The backbone.
    pub fn backbone(&self) -> &dyn Backbone {
        self.backbone.as_ref()
    }

    /// What stands on it.
    pub fn heads(&self) -> &H {
        &self.heads
    }

    /// The features of the images of a part of a batch, `(b, feature_dim)`.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn image_features(&mut self, part: &Batch, mode: Mode) -> Result<Tensor> {
        self.features(part, &part.images, mode)
    }

    /// The features of their transformed views, `(b * views, feature_dim)`, the views of an image in
    /// neighbouring rows.
    ///
    /// # Errors
    /// [`TrainError::NoTransformedViews`]; as [`Backbone::forward`].
    pub fn transformed_features(&mut self, part: &Batch, mode: Mode) -> Result<Tensor> {
        let views = part.transformed.as_ref();
        self.features(part, views.ok_or(TrainError::NoTransformedViews)?, mode)
    }

    fn features(&mut self, part: &Batch, views: &Tensor, mode: Mode) -> Result<Tensor> {
        let views = self.upload.send(views)?;
        let views = part.normalize.apply(&views, self.upload.device())?;
        Ok(self.backbone.forward(&views, mode)?)
    }
}

/// `tensor` on `device`. Between two devices it goes by way of the host, whose copies are over when
/// they return: neither device's own order says when the other is done with it.
///
/// # Errors
/// If a device has no room.
pub fn move_to(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    if tensor.device().same_device(device) {
        return Ok(tensor.clone());
    }
    tensor.to_device(&Device::Cpu)?.to_device(device)
}
