//! The numbers of a tensor in the CPU's memory.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType, bail};

/// The numbers of contiguous storage, as custom ops are given it.
///
/// # Errors
/// If they are of another type, not contiguous, or beyond the storage.
pub fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let numbers = T::cpu_storage_as_slice(storage)?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, found {layout:?}");
    };
    match numbers.get(start..end) {
        Some(numbers) => Ok(numbers),
        None => bail!("a tensor spans {start}..{end}, beyond its storage"),
    }
}

/// The same, to be written to.
///
/// # Errors
/// As [`slice()`].
pub fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, found {layout:?}");
    };
    let CpuStorage::F32(numbers) = storage else {
        bail!("expected a tensor of f32");
    };
    match numbers.get_mut(start..end) {
        Some(numbers) => Ok(numbers),
        None => bail!("a tensor spans {start}..{end}, beyond its storage"),
    }
}

/// The numbers of contiguous storage, unless it is on another device.
///
/// # Errors
/// As [`slice()`], and for a tensor on another device.
pub fn cpu_slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => bail!("expected a tensor in the CPU's memory"),
    }
}

/// What `read` makes of the numbers of a tensor in the CPU's memory; they are copied only if they are
/// not contiguous.
///
/// # Errors
/// As [`cpu_slice`], but for the order.
pub fn with_slice<T: WithDType, R>(x: &Tensor, read: impl FnOnce(&[T]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    Ok(read(cpu_slice(&storage, layout)?))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn slices_are_those_of_the_tensor_alone() {
        let x = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap();
        let part = x.reshape((3, 4)).unwrap().narrow(0, 1, 1).unwrap();
        with_slice(&part, |numbers: &[f32]| {
            assert_eq!(numbers, [4.0, 5.0, 6.0, 7.0])
        })
        .unwrap();
        let turned = x.reshape((3, 4)).unwrap().t().unwrap();
        with_slice(&turned, |numbers: &[f32]| {
            assert_eq!(numbers[..3], [0.0, 4.0, 8.0])
        })
        .unwrap();
        let (storage, layout) = turned.storage_and_layout();
        assert!(cpu_slice::<f32>(&storage, layout).is_err());
        let bytes = x.to_dtype(DType::U8).unwrap();
        assert!(with_slice(&bytes, |_: &[f32]| ()).is_err());
        let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        with_slice(&empty, |numbers: &[f32]| assert!(numbers.is_empty())).unwrap();
    }
}
