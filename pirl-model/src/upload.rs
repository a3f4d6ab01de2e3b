//! The way of a batch's bytes to the device.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::Staging;
use crate::error::Result;

/// Carries views to a device.
///
/// To a CUDA device bytes go by way of pinned memory and a stream of their own, so the copy runs
/// beside whatever the device still computes of the batch before; nothing waits for it but what comes
/// after.
pub struct Upload {
    device: Device,
    #[cfg(feature = "cuda")]
    staging: Option<Staging>,
}

impl Upload {
    /// A way to `device`.
    ///
    /// # Errors
    /// If a CUDA device has no room for another stream.
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

    /// The device at the other end.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `views`, of any shape and type, on the device. Those of bytes in the host's memory take the
    /// fast way.
    ///
    /// # Errors
    /// If the device has no room, or the host none to pin.
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
