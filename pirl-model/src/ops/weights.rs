//! The weights of all convolutions of a network, in the layout and type of products on channels-last maps:
//! `(c_out, k, k, c_in)` where the parameters are `(c_out, c_in, k, k)` and `f32`.

use candle_core::{DType, Device, Result, Tensor};

/// Where the weights of a network's convolutions lie among its parameters, which are one flat tensor.
#[derive(Debug)]
pub(crate) struct ConvWeights {
    places: Vec<Place>,
    /// The same for the kernels, `(places, 4)`.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "of kernels alone"))]
    table: Option<Tensor>,
}

#[derive(Debug)]
struct Place {
    start: usize,
    /// Of the parameter.
    shape: [usize; 4],
}

impl Place {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

impl ConvWeights {
    /// Of weights with their starts and shapes, on `device`.
    pub(crate) fn new(
        weights: impl Iterator<Item = (usize, [usize; 4])>,
        device: &Device,
    ) -> Result<Self> {
        let places: Vec<Place> = weights
            .map(|(start, shape)| Place { start, shape })
            .collect();
        let row = |place: &Place| {
            let [_, channels, height, width] = place.shape;
            [place.start, place.len(), channels, height * width].map(|size| size as i64)
        };
        let rows: Vec<i64> = places.iter().flat_map(row).collect();
        let table = (device.is_cuda() && !places.is_empty())
            .then(|| Tensor::from_vec(rows, (places.len(), 4), device))
            .transpose()?;
        Ok(Self { places, table })
    }

    /// The weights as products take them, in `dtype`: a tensor as long as `flat`, with each at its place, and
    /// anything elsewhere.
    pub(crate) fn channels_last(&self, flat: &Tensor, dtype: DType) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(table) = &self.table {
            return cuda::channels_last(self.places.len(), table, flat, dtype);
        }
        let out = Tensor::zeros(flat.shape(), dtype, flat.device())?;
        for place in &self.places {
            let weight = flat.narrow(0, place.start, place.len())?;
            let weight = weight.reshape(&place.shape[..])?.permute((0, 2, 3, 1))?;
            let weight = weight.to_dtype(dtype)?.flatten_all()?;
            out.slice_set(&weight, 0, place.start)?;
        }
        Ok(out)
    }

    /// Writes the gradients `from`, laid out as by [`ConvWeights::channels_last`], to their places in `gradient`,
    /// that of the parameters.
    pub(crate) fn set_gradient(&self, from: &Tensor, gradient: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(table) = &self.table {
            return cuda::set_gradient(self.places.len(), table, from, gradient);
        }
        for place in &self.places {
            let [filters, channels, height, width] = place.shape;
            let part = from.narrow(0, place.start, place.len())?;
            let part = part.reshape((filters, height, width, channels))?;
            let part = part.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?;
            gradient.slice_set(&part.flatten_all()?, 0, place.start)?;
        }
        Ok(())
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda::WrapErr;
    use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
    use candle_core::{DType, Result, Tensor};

    use crate::cuda::{self, Kernels, of_type};

    static KERNELS: Kernels = Kernels::new("weights", include_str!("weights.cu"));

    /// Blocks that share out a weight, and their threads.
    const SHARES: u32 = 64;
    const THREADS: u32 = 256;

    pub(super) fn channels_last(
        weights: usize,
        table: &Tensor,
        flat: &Tensor,
        dtype: DType,
    ) -> Result<Tensor> {
        let (places, places_layout) = table.storage_and_layout();
        let places = cuda::numbers::<i64>(cuda::storage(&places)?, places_layout)?;
        let (storage, layout) = flat.storage_and_layout();
        let storage = cuda::storage(&storage)?;
        let (device, numbers) = (&storage.device, cuda::numbers::<f32>(storage, layout)?);
        of_type!("convolution", dtype, T => {
            let mut out = cuda::alloc::<T>(device, numbers.len())?;
            let kernel = KERNELS.get(device, "weights_to_channels_last", dtype)?;
            let mut launch = kernel.launch();
            launch.arg(&numbers).arg(&places).arg(&mut out);
            // SAFETY: the places are of parameters of the set whose numbers these are.
            unsafe { launch.launch(grid(weights)) }.w()?;
            drop(launch);
            Ok(cuda::tensor(out, flat.shape(), device))
        })
    }

    pub(super) fn set_gradient(
        weights: usize,
        table: &Tensor,
        from: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        let (places, places_layout) = table.storage_and_layout();
        let places = cuda::numbers::<i64>(cuda::storage(&places)?, places_layout)?;
        let (storage, layout) = from.storage_and_layout();
        let storage = cuda::storage(&storage)?;
        let device = &storage.device;
        of_type!("convolution", from.dtype(), T => {
            let numbers = cuda::numbers::<T>(storage, layout)?;
            cuda::write::<f32, _>(gradient, |mut gradient| {
                if gradient.len() != numbers.len() {
                    candle_core::bail!("two gradients of one set have different lengths");
                }
                let kernel = KERNELS.get(
                    device,
                    "weight_gradients_from_channels_last",
                    from.dtype(),
                )?;
                let mut launch = kernel.launch();
                launch.arg(&numbers).arg(&places).arg(&mut gradient);
                // SAFETY: as above.
                unsafe { launch.launch(grid(weights)) }.w()?;
                Ok(())
            })
        })
    }

    fn grid(weights: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (SHARES, weights as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        }
    }
}
