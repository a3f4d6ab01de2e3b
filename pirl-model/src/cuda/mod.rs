//! CUDA kernels: `.cu` files beside the ops they belong to, compiled by NVRTC on the machine that
//! runs them, when they are first needed.
//!
//! ```no_run
//! use candle_core::DType;
//! use candle_core::cuda::WrapErr;
//! use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
//! use pirl_model::cuda::{self, Kernels};
//!
//! static DOUBLE: Kernels = Kernels::new(
//!     "double",
//!     "KERNEL twice(float *x, int n) { if (threadIdx.x < n) x[threadIdx.x] *= 2.0f; }",
//! );
//!
//! let gpu = cuda::open(0)?;
//! let device = gpu.as_cuda_device()?;
//! let mut x = device.alloc_zeros::<f32>(8)?;
//! let kernel = DOUBLE.get(device, "twice", DType::F32)?;
//! let mut launch = kernel.launch();
//! let n = cuda::int(8)?;
//! launch.arg(&mut x).arg(&n);
//! // SAFETY: the kernel takes a pointer to `n` numbers and `n`.
//! unsafe { launch.launch(LaunchConfig::for_num_elems(8)) }.w()?;
//! # Ok::<(), candle_core::Error>(())
//! ```

mod device;
mod staging;

use std::cell::Cell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::CudaDType;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, LaunchArgs,
};
use candle_core::cuda::cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Error, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, WithDType, bail,
};

pub use device::{open, take_peak_memory};
pub(crate) use staging::Staging;

/// What kernels begin with.
const HEADER: &str = include_str!("kernel.h");

/// What the numbers of a tensor on a CUDA device can be.
pub trait Number: CudaDType + DeviceRepr + WithDType {}
impl<T: CudaDType + DeviceRepr + WithDType> Number for T {}

/// Evaluates `$run` with `$T` the type of activations that `$dtype` names.
macro_rules! of_type {
    ($op:literal, $dtype:expr, $T:ident => $run:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $run
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $run
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $run
            }
            other => {
                candle_core::bail!(
                    "{} on a CUDA device is for f32, bf16 and f16, got {other:?}",
                    $op
                )
            }
        }
    };
}
pub(crate) use of_type;

/// The kernels of a `.cu` file.
pub struct Kernels {
    name: &'static str,
    source: &'static str,
    /// Compiled, by the type of activations.
    compiled: Mutex<Option<HashMap<DType, Arc<str>>>>,
}

/// A kernel on a device.
pub struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    /// A launch on the device's stream, to be given the kernel's arguments.
    pub fn launch(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

impl Kernels {
    /// The kernels of `source`, which `kernel.h` comes in front of. `name` is unique among them.
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self {
            name,
            source,
            compiled: Mutex::new(None),
        }
    }

    /// The kernel called `kernel`, for activations stored as `element`: `f32`, `bf16` or `f16`.
    ///
    /// # Errors
    /// If NVRTC or the driver rejects it; the message has NVRTC's log.
    pub fn get(&self, device: &CudaDevice, kernel: &str, element: DType) -> Result<Kernel> {
        let module = format!("pirl_{}_{}", self.name, element.as_str());
        let ptx = self.compile(element)?;
        let function = device.get_or_load_custom_func(kernel, &module, &ptx)?;
        Ok(Kernel {
            function: function.into_cuda_function(),
            stream: device.cuda_stream(),
        })
    }

    fn compile(&self, element: DType) -> Result<Arc<str>> {
        // What is compiled is whole, whoever panicked elsewhere.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        if let Some(ptx) = compiled.get(&element) {
            return Ok(Arc::clone(ptx));
        }
        let define = match element {
            DType::F32 => None,
            DType::BF16 => Some("-DPIRL_BF16".to_owned()),
            DType::F16 => Some("-DPIRL_F16".to_owned()),
            other => bail!("the kernels of {} are not for {other:?}", self.name),
        };
        let options = CompileOptions {
            name: Some(format!("{}.cu", self.name)),
            options: define.into_iter().collect(),
            ..CompileOptions::default()
        };
        let source = format!("{HEADER}\n{}", self.source);
        let ptx = compile_ptx_with_opts(source, options).map_err(|error| match error {
            CompileError::CompileError { log, .. } => Error::Msg(format!(
                "NVRTC on {}.cu: {}",
                self.name,
                log.to_string_lossy()
            )),
            other => Error::Msg(format!("NVRTC on {}.cu: {other}", self.name)),
        })?;
        let ptx: Arc<str> = ptx.to_src().into();
        compiled.insert(element, Arc::clone(&ptx));
        Ok(ptx)
    }
}

/// A size as kernels take it.
///
/// # Errors
/// If it needs more than 31 bits.
pub fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::Msg(format!("{size} is too large a size for a kernel")))
}

/// The numbers of a contiguous tensor on a CUDA device.
///
/// # Errors
/// If it is not one, or not of type `T`.
pub fn numbers<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel needs contiguous tensors, got {layout:?}");
    };
    match storage.as_cuda_slice::<T>()?.try_slice(start..end) {
        Some(numbers) => Ok(numbers),
        None => bail!("a tensor spans {start}..{end}, beyond its storage"),
    }
}

/// The storage of a tensor on a CUDA device.
///
/// # Errors
/// If it is elsewhere.
pub fn storage(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        other => bail!(
            "a kernel needs tensors on its device, got one on {:?}",
            other.device()
        ),
    }
}

/// Memory for `len` numbers, which a kernel then writes.
///
/// # Errors
/// If the device has no memory left.
pub fn alloc<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: plain numbers, which every caller has a kernel overwrite before they are read.
    unsafe { device.alloc(len) }
}

/// Hands the numbers of `to`, a contiguous tensor on a CUDA device that may be a part of a larger one, to `work`,
/// which has a kernel write them.
///
/// # Errors
/// If it is not one, or not of type `T`; those of `work`.
pub fn write<T: Number, R>(
    to: &Tensor,
    work: impl FnOnce(CudaViewMut<'_, T>) -> Result<R>,
) -> Result<R> {
    let op = Write {
        work: Cell::new(Some(work)),
        result: Cell::new(None),
        numbers: PhantomData::<T>,
    };
    to.inplace_op1(&op)?;
    match op.result.take() {
        Some(result) => Ok(result),
        None => bail!("a kernel that was not run"),
    }
}

struct Write<T, W, R> {
    work: Cell<Option<W>>,
    result: Cell<Option<R>>,
    numbers: PhantomData<T>,
}

impl<T: Number, R, W: FnOnce(CudaViewMut<'_, T>) -> Result<R>> InplaceOp1 for Write<T, W, R> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("a kernel writes to tensors on its device, got one in the CPU's memory")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a kernel needs contiguous tensors, got {layout:?}");
        };
        let numbers = storage.as_cuda_slice_mut::<T>()?;
        let (Some(numbers), Some(work)) = (numbers.try_slice_mut(start..end), self.work.take())
        else {
            bail!("a tensor spans {start}..{end}, beyond its storage");
        };
        self.result.set(Some(work(numbers)?));
        Ok(())
    }
}

/// A tensor of what a kernel wrote, outside Candle's graph.
pub fn tensor<T: CudaDType>(
    numbers: CudaSlice<T>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(numbers, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}
