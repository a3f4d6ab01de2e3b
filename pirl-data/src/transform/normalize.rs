//! From 8-bit pixels to normalised numbers.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};
use pirl_core::vectorised;
use rayon::prelude::*;

use super::lanes::{Block, LANES, Visit, visit};
use crate::config::check_normalization;
use crate::{DataError, Image};

/// `(value / 255 - mean) / std` in `f32`, as torchvision's `ToTensor` and `Normalize`.
///
/// Views are made and carried to the device as bytes, a quarter of the size, and normalised there.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use pirl_data::Normalize;
///
/// let normalize = Normalize::new([0.5; 3], [0.5; 3])?;
/// let views = Tensor::from_vec(vec![0u8, 255, 51], (1, 3, 1, 1), &Device::Cpu)?;
/// let numbers = normalize.apply(&views, &Device::Cpu)?;
/// assert_eq!(numbers.flatten_all()?.to_vec1::<f32>()?, [-1.0, 1.0, -0.6]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Normalize {
    /// By mean and standard deviation of each channel, of values in 0..=1: those of red, green and blue, or
    /// as many as images have.
    ///
    /// # Errors
    /// [`DataError::Setting`] for what is not finite, a deviation of 0 or less, or lists of other lengths
    /// than images have channels.
    pub fn new(mean: impl Into<Vec<f32>>, std: impl Into<Vec<f32>>) -> Result<Self, DataError> {
        let (mean, std) = (mean.into(), std.into());
        check_normalization(mean.len(), &mean, &std)?;
        Ok(Self { mean, std })
    }

    /// Channels of the views.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Views `(n, channels, h, w)` as networks take them, on `device`: `f32`, normalised. Those that are
    /// `f32` already are taken to be normalised and only moved.
    ///
    /// # Errors
    /// [`DataError::Tensor`] for another shape or type.
    pub fn apply(&self, views: &Tensor, device: &Device) -> Result<Tensor, DataError> {
        if views.dtype() == DType::F32 {
            return Ok(views.to_device(device)?);
        }
        let (_, found, height, width) = views.dims4()?;
        let channels = self.channels();
        if found != channels {
            let found = format!("{:?}", views.dims());
            let error = format!("views have {channels} channels, got {found}");
            return Err(candle_core::Error::msg(error).into());
        }
        if device.is_cpu() {
            let op = OnCpu {
                normalize: self.clone(),
                area: height * width,
            };
            return Ok(views.contiguous()?.apply_op1_no_bwd(&op)?);
        }
        let each = |values: &[f32]| Tensor::from_slice(values, (1, channels, 1, 1), device);
        let values = views.to_device(device)?.to_dtype(DType::F32)?;
        // Not by a number, whose reciprocal Candle would multiply with.
        let values = values.broadcast_div(&each(&vec![255.0; channels])?)?;
        let centred = values.broadcast_sub(&each(&self.mean)?)?;
        Ok(centred.broadcast_div(&each(&self.std)?)?)
    }
}

/// Writes `image` to `out`, channels apart: `(channels, height, width)`; `out` has that many entries.
pub(crate) fn write_planes(image: &Image, out: &mut [u8]) {
    debug_assert_eq!(out.len(), image.pixels.len());
    let channels = image.channels.max(1);
    if channels == 3 {
        return write_channels(&image.pixels, out);
    }
    let area = (image.pixels.len() / channels).max(1);
    for (channel, plane) in out.chunks_exact_mut(area).enumerate() {
        let values = image.pixels.iter().skip(channel).step_by(channels);
        for (place, value) in plane.iter_mut().zip(values) {
            *place = *value;
        }
    }
}

vectorised! {
    fn write_channels(pixels: &[u8], out: &mut [u8]) {
        let (red, rest) = out.split_at_mut(pixels.len() / 3);
        let (green, blue) = rest.split_at_mut(pixels.len() / 3);
        let mut planes = Planes { rest: [red, green, blue] };
        visit(pixels, &mut planes);
    }
}

/// What of the three planes is still to be written.
struct Planes<'a> {
    rest: [&'a mut [u8]; 3],
}

impl Visit for Planes<'_> {
    #[inline(always)]
    fn visit(&mut self, block: &Block) {
        for (rest, values) in self.rest.iter_mut().zip(block) {
            let whole = std::mem::take(rest);
            let (out, left) = whole.split_at_mut(whole.len().min(LANES));
            out.copy_from_slice(&values[..out.len()]);
            *rest = left;
        }
    }
}

vectorised! {
    fn normalize_plane(values: &[u8], mean: f32, std: f32, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = (f32::from(*value) / 255.0 - mean) / std;
        }
    }
}

/// [`Normalize::apply`] on a CPU: all planes at once.
struct OnCpu {
    normalize: Normalize,
    /// Pixels of a plane.
    area: usize,
}

impl CustomOp1 for OnCpu {
    fn name(&self) -> &'static str {
        "pirl-normalize"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = pirl_core::storage::slice::<u8>(storage, layout)?;
        let Normalize { mean, std } = &self.normalize;
        let channels = mean.len();
        let mut out = vec![0.0; values.len()];
        let area = self.area.max(1);
        let planes = values
            .par_chunks(area)
            .zip(out.par_chunks_mut(area))
            .enumerate();
        planes.for_each(|(plane, (values, out))| {
            normalize_plane(values, mean[plane % channels], std[plane % channels], out);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_come_back_and_numbers_are_those_of_tensor_operations() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let normalize = Normalize::new(mean, std).unwrap();
        let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for side in [1, 2, 5, 6, 11, 33] {
            let pixels = (0..side * side * 3).map(|i| (i * 37 % 251) as u8);
            let image = Image::new(side, side, pixels.collect()).unwrap();
            let mut planes = vec![9; side * side * 3];
            write_planes(&image, &mut planes);
            assert_eq!(Image::from_planes(side, side, &planes).unwrap(), image);

            let views = [planes.clone(), planes].concat();
            let views = Tensor::from_vec(views, (2, 3, side, side), &Device::Cpu).unwrap();
            let found = normalize.apply(&views, &Device::Cpu).unwrap();
            let channels = |values: [f32; 3]| {
                Tensor::from_vec(values.to_vec(), (1, 3, 1, 1), &Device::Cpu).unwrap()
            };
            let expected = views.to_dtype(DType::F32).unwrap();
            let expected = expected.broadcast_div(&channels([255.0; 3])).unwrap();
            let expected = expected.broadcast_sub(&channels(mean)).unwrap();
            let expected = expected.broadcast_div(&channels(std)).unwrap();
            assert_eq!(bits(&found), bits(&expected));
            // A part of a batch, and what is normalised already.
            let second = normalize.apply(&views.narrow(0, 1, 1).unwrap(), &Device::Cpu);
            assert_eq!(bits(&second.unwrap()), bits(&found.get(1).unwrap()));
            let again = normalize.apply(&found, &Device::Cpu).unwrap();
            assert_eq!(bits(&again), bits(&found));
        }
        let grey = Tensor::zeros((2, 1, 4, 4), DType::U8, &Device::Cpu).unwrap();
        assert!(normalize.apply(&grey, &Device::Cpu).is_err());
        let one = Normalize::new([0.5], [0.25]).unwrap();
        let found = one.apply(&grey, &Device::Cpu).unwrap();
        assert_eq!(bits(&found), [-2.0; 32]);
        let five = Image::with_channels(2, 1, 5, (0..10).collect()).unwrap();
        let mut planes = [9; 10];
        write_planes(&five, &mut planes);
        assert_eq!(planes, [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]);
        assert_eq!(Image::from_planes(2, 1, &planes).unwrap(), five);
        assert!(Normalize::new([0.5; 3], [0.5; 2]).is_err());
        assert!(Normalize::new([0.5; 3], [0.5, 0.0, 0.5]).is_err());
        assert!(Normalize::new([f32::NAN; 3], [0.5; 3]).is_err());
    }
}
