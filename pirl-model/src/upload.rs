//! Copies of batches to a device.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::Staging;
use crate::error::Result;

/// Copies views to a device.
///
/// Bytes for a CUDA device go through pinned memory on a separate stream, so that the copy overlaps
/// with the computation of the previous batch; only work queued after the copy waits for it.
pub struct Upload {
    device: Device,
    #[cfg(feature = "cuda")]
    staging: Option<Staging>,
}

impl Upload {
    /// Copies to `device`.
    ///
    /// # Errors
    /// If a CUDA device cannot make another stream.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cuda")]
            staging: match device {
                Device::Cuda(device) => Some(Staging::new(device)?),
                Device::Cpu | Device::Metal(_) => None,
            },
            device: device.clone(),
        })
    }

    /// The device that views are copied to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `views`, of any shape and type, on the device. Bytes (`u8`) in the host's memory go through
    /// pinned memory.
    ///
    /// # Errors
    /// If the device has no memory left, or the host none to pin.
    pub fn send(&mut self, views: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(staging) = &mut self.staging
            && views.dtype() == DType::U8
            && views.device().is_cpu()
            && views.elem_count() > 0
        {
            return Ok(staging.send(&views.contiguous()?)?);
        }
        Ok(views.to_device(&self.device)?)
    }
}
