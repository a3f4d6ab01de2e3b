//! Copies to a CUDA device that run beside its computation.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};
use candle_core::{CudaDevice, Result, Storage, Tensor, bail};

use super::{alloc, tensor};

/// Pinned memory and a stream for copies from the host.
///
/// A batch is written to pinned memory, copied from there by a stream of its own to a buffer on the
/// device, and from that, within the device, to the tensor handed out. There are two of each, so the
/// next batch can be on its way while the device still has work to do before it takes this one.
pub(crate) struct Staging {
    device: CudaDevice,
    copies: Arc<CudaStream>,
    /// By the number of bytes: images and patches of a run have always the same.
    slots: HashMap<usize, [Slot; 2]>,
}

struct Slot {
    pinned: PinnedHostSlice<u8>,
    buffer: CudaSlice<u8>,
    /// On the stream of computation: what was in `buffer` has been taken.
    taken: CudaEvent,
}

impl Slot {
    fn new(device: &CudaDevice, bytes: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        let buffer = alloc(device, bytes)?;
        // Not before the buffer is there, which it is in the order of this stream.
        let taken = stream.record_event(None).w()?;
        Ok(Self {
            // SAFETY: every use writes all of it before the device reads it.
            pinned: unsafe { stream.context().alloc_pinned(bytes) }.w()?,
            buffer,
            taken,
        })
    }
}

impl Staging {
    pub(crate) fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        // cudarc would from now on record events at every launch, for all that it is given.
        // SAFETY: all of Candle's work goes to `stream`; the one other stream is this type's, and
        // events order what the two share.
        unsafe { context.disable_event_tracking() };
        Ok(Self {
            device: device.clone(),
            copies: context.new_stream().w()?,
            slots: HashMap::new(),
        })
    }

    /// `views`, contiguous bytes in the host's memory, on the device.
    pub(crate) fn send(&mut self, views: &Tensor) -> Result<Tensor> {
        let (storage, layout) = views.storage_and_layout();
        let bytes = match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(storage), Some((start, end))) => {
                storage.as_slice::<u8>()?.get(start..end)
            }
            _ => None,
        };
        let Some(bytes) = bytes else {
            bail!("views to send are not contiguous bytes in the host's memory: {layout:?}");
        };
        let compute = self.device.cuda_stream();
        let slots = match self.slots.entry(bytes.len()) {
            std::collections::hash_map::Entry::Occupied(slots) => slots.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let slot = || Slot::new(&self.device, bytes.len());
                place.insert([slot()?, slot()?])
            }
        };
        slots.swap(0, 1);
        let slot = &mut slots[0];
        // Waits until the copy before last has left the pinned memory.
        slot.pinned.as_mut_slice().w()?.copy_from_slice(bytes);
        self.copies.wait(&slot.taken).w()?;
        self.copies
            .memcpy_htod(&slot.pinned, &mut slot.buffer)
            .w()?;
        compute.wait(&self.copies.record_event(None).w()?).w()?;
        let mut out = alloc(&self.device, bytes.len())?;
        compute.memcpy_dtod(&slot.buffer, &mut out).w()?;
        slot.taken = compute.record_event(None).w()?;
        Ok(tensor(out, views.shape(), &self.device))
    }
}
