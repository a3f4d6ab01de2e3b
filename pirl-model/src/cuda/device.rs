//! Opening a GPU, and how much of its memory is used.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::{
    CUmemPool_attribute, CUmemoryPool, CUresult, cuDeviceGetDefaultMemPool, cuMemPoolGetAttribute,
    cuMemPoolSetAttribute,
};
use candle_core::cuda::cudarc::driver::{CudaContext, DriverError};
use candle_core::{CudaDevice, Device, Error, Result, bail};

/// GPU number `ordinal`, from 0, as training uses it: all its work goes to one stream, whatever thread it
/// comes from, and memory that is freed stays with the process, as asking the driver for it anew at each
/// step takes longer than many a kernel.
///
/// # Errors
/// If no driver answers, or there are not as many GPUs, or a library of NVIDIA's does not begin to work.
pub fn open(ordinal: usize) -> Result<Device> {
    let count = CudaContext::device_count().map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_NOT_INITIALIZED => Error::Msg(
            "no GPU answers: see whether `nvidia-smi` lists one, and whether NVIDIA's driver \
             (libcuda.so.1) is installed"
                .to_owned(),
        ),
        _ => Error::Cuda(Box::new(error)),
    })?;
    if ordinal >= count as usize {
        return Err(Error::Msg(match count {
            0 => "the driver finds no GPU".to_owned(),
            1 => "there is one GPU, number 0".to_owned(),
            count => format!("there are {count} GPUs, numbered from 0"),
        }));
    }
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: the device's work goes to its one stream; what `Staging` copies by another is ordered by
    // events of its own.
    unsafe { device.disable_event_tracking() };
    if let Some(pool) = pool(&device)? {
        let mut keep = u64::MAX;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's, and this attribute a number of 64 bits.
        unsafe { cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()) }
            .result()
            .w()?;
    }
    Ok(Device::Cuda(device))
}

/// The most bytes of a device's memory that tensors took at any time since the last call: `None` where
/// its driver does not count them.
///
/// # Errors
/// If the driver does not answer.
pub fn take_peak_memory(device: &CudaDevice) -> Result<Option<u64>> {
    let Some(pool) = pool(device)? else {
        return Ok(None);
    };
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let (mut peak, mut zero) = (0_u64, 0_u64);
    // SAFETY: the pool is the device's, and this attribute a number of 64 bits, which setting it to 0
    // sets to what is used now.
    unsafe {
        cuMemPoolGetAttribute(pool, attribute, (&raw mut peak).cast())
            .result()
            .w()?;
        cuMemPoolSetAttribute(pool, attribute, (&raw mut zero).cast())
            .result()
            .w()?;
    }
    Ok(Some(peak))
}

/// What the device's memory comes from; `None` for one that cannot allocate in the order of a stream.
fn pool(device: &CudaDevice) -> Result<Option<CUmemoryPool>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread().w()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: it writes one pointer.
    let found = unsafe { cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }.result();
    match found {
        Ok(()) => Ok(Some(pool)),
        Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED)) => Ok(None),
        Err(error) => bail!("the device's memory pool: {error}"),
    }
}
