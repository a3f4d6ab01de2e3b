//! Convolution on a CUDA device by cuDNN, on NHWC maps and weights of layout
//! `(c_out, kernel, kernel, c_in)`.
//!
//! In `bf16` and `f16` products run on tensor cores and are summed in `f32`; in `f32` they are exact
//! products unless TF32's are asked for. cuDNN's heuristics choose an algorithm for each shape and direction once, and
//! should theirs not run, the one that cuDNN has for most; the workspace is kept and only grows.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda::DeviceId;
use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as DataAlgorithm,
    cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm,
    cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnConvolutionMode_t, cudnnMathType_t,
    cudnnTensorFormat_t,
};
use candle_core::cuda::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType,
    CudnnError, FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Tensor, bail};

use super::shape::ConvShape;
use crate::cuda::{self, Number, of_type};

thread_local! {
    // cuDNN's handles must stay on their thread.
    static STATES: RefCell<HashMap<DeviceId, State>> = RefCell::default();
}

/// cuDNN on one device.
struct State {
    cudnn: Arc<Cudnn>,
    workspace: Option<CudaSlice<u8>>,
    forward: Choices<ForwardAlgorithm>,
    data: Choices<DataAlgorithm>,
    filter: Choices<FilterAlgorithm>,
}

/// The algorithm and its workspace in bytes, by shape, type and whether TF32 will do.
type Choices<A> = HashMap<(ConvShape, DType, bool), (A, usize)>;

impl State {
    fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self {
            cudnn: Cudnn::new(device.cuda_stream())?,
            workspace: None,
            forward: HashMap::new(),
            data: HashMap::new(),
            filter: HashMap::new(),
        })
    }
}

/// Grows `workspace` to at least `bytes`. Whoever used it before did so earlier on the same stream.
fn room<'a>(
    workspace: &'a mut Option<CudaSlice<u8>>,
    bytes: usize,
    device: &CudaDevice,
) -> Result<&'a mut CudaSlice<u8>> {
    if workspace.as_ref().is_none_or(|room| room.len() < bytes) {
        *workspace = None; // freed before more is asked for
    }
    match workspace {
        Some(room) => Ok(room),
        none => Ok(none.insert(cuda::alloc(device, bytes.max(1))?)),
    }
}

fn with_state<R>(device: &CudaDevice, work: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
    STATES.with_borrow_mut(|states| {
        let state = match states.entry(device.id()) {
            std::collections::hash_map::Entry::Occupied(state) => state.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(State::new(device)?),
        };
        work(state)
    })
}

/// What numbers a convolution can be of.
trait Factor: Number + CudnnDataType {}
impl<T: Number + CudnnDataType> Factor for T {}

/// The descriptors of a convolution.
struct Descriptors<T> {
    convolution: ConvDescriptor<f32>,
    input: TensorDescriptor<T>,
    weight: FilterDescriptor<T>,
    output: TensorDescriptor<T>,
}

impl<T: Factor> Descriptors<T> {
    fn new(cudnn: &Arc<Cudnn>, s: &ConvShape, tf32: bool) -> Result<Self> {
        let nhwc = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let tensor = |c: usize, h: usize, w: usize| -> Result<TensorDescriptor<T>> {
            let dims = [cuda::int(s.n)?, cuda::int(c)?, cuda::int(h)?, cuda::int(w)?];
            Ok(cudnn.create_4d_tensor(nhwc, dims)?)
        };
        let (padding, stride, kernel) = (
            cuda::int(s.padding)?,
            cuda::int(s.stride)?,
            cuda::int(s.kernel)?,
        );
        let (oh, ow) = s.out_hw();
        let mut convolution = cudnn.create_conv2d(
            [padding; 2],
            [stride; 2],
            [1; 2],
            cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
        )?;
        convolution.set_math_type(match T::DTYPE {
            DType::F32 if tf32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
            DType::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        })?;
        let dims = [cuda::int(s.c_out)?, cuda::int(s.c_in)?, kernel, kernel];
        Ok(Self {
            convolution,
            input: tensor(s.c_in, s.h, s.w)?,
            weight: cudnn.create_4d_filter(nhwc, dims)?,
            output: tensor(s.c_out, oh, ow)?,
        })
    }
}

/// `x * weight`, NHWC.
pub(in crate::ops) fn forward(
    s: &ConvShape,
    tf32: bool,
    (x, x_layout): (&CudaStorage, &Layout),
    (weight, weight_layout): (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    of_type!("convolution", x.dtype(), T => {
        let (input, weight) = (cuda::numbers(x, x_layout)?, cuda::numbers(weight, weight_layout)?);
        let out = forward_of::<T>(s, tf32, &x.device, &input, &weight)?;
        Ok(CudaStorage::wrap_cuda_slice(out, x.device.clone()))
    })
}

/// The gradient of `x`, NHWC, from that of [`forward`]'s result.
pub(in crate::ops) fn backward_input(
    s: &ConvShape,
    tf32: bool,
    weight: &Tensor,
    dy: &Tensor,
) -> Result<Tensor> {
    of_type!("convolution", dy.dtype(), T => {
        with_two(weight, dy, |device, weight, dy| {
            let dx = backward_input_of::<T>(s, tf32, device, weight, dy)?;
            Ok(cuda::tensor(dx, (s.n, s.h, s.w, s.c_in), device))
        })
    })
}

/// The gradient of the weight from that of [`forward`]'s result.
pub(in crate::ops) fn backward_weight(
    s: &ConvShape,
    tf32: bool,
    x: &Tensor,
    dy: &Tensor,
) -> Result<Tensor> {
    of_type!("convolution", x.dtype(), T => {
        with_two(x, dy, |device, x, dy| {
            let mut dw = cuda::alloc::<T>(device, s.weight_len())?;
            backward_weight_of::<T>(s, tf32, device, x, dy, &mut dw.as_view_mut())?;
            Ok(cuda::tensor(dw, (s.c_out, s.kernel, s.kernel, s.c_in), device))
        })
    })
}

/// [`backward_weight`], written to the contiguous tensor `place`.
pub(in crate::ops) fn backward_weight_into(
    s: &ConvShape,
    tf32: bool,
    x: &Tensor,
    dy: &Tensor,
    place: &Tensor,
) -> Result<()> {
    of_type!("convolution", x.dtype(), T => {
        with_two(x, dy, |device, x, dy| {
            cuda::write(place, |mut dw| backward_weight_of::<T>(s, tf32, device, x, dy, &mut dw))
        })
    })
}

fn with_two<T: Number, R>(
    a: &Tensor,
    b: &Tensor,
    work: impl FnOnce(&CudaDevice, &CudaView<T>, &CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (a, a_layout) = a.storage_and_layout();
    let (b, b_layout) = b.storage_and_layout();
    let (a, b) = (cuda::storage(&a)?, cuda::storage(&b)?);
    work(
        &a.device,
        &cuda::numbers(a, a_layout)?,
        &cuda::numbers(b, b_layout)?,
    )
}

fn forward_of<T: Factor>(
    s: &ConvShape,
    tf32: bool,
    device: &CudaDevice,
    x: &CudaView<T>,
    weight: &CudaView<T>,
) -> Result<CudaSlice<T>> {
    check([
        ("input", x.len(), s.in_len()),
        ("weight", weight.len(), s.weight_len()),
    ])?;
    let mut out = cuda::alloc::<T>(device, s.out_len())?;
    with_state(device, |state| {
        let descriptors = Descriptors::<T>::new(&state.cudnn, s, tf32)?;
        let op = ConvForward {
            conv: &descriptors.convolution,
            x: &descriptors.input,
            w: &descriptors.weight,
            y: &descriptors.output,
        };
        let (algorithm, bytes) = chosen(
            &mut state.forward,
            (*s, T::DTYPE, tf32),
            || op.pick_algorithm(),
            ForwardAlgorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
            |algorithm| op.get_workspace_size(algorithm),
        )?;
        let workspace = room(&mut state.workspace, bytes, device)?;
        // SAFETY: input, weight and output are packed as the descriptors say and have the lengths
        // that follow from `s`; the workspace is at least as large as asked for.
        unsafe {
            op.launch(
                algorithm,
                Some(workspace),
                (T::one(), T::zero()),
                x,
                weight,
                &mut out,
            )
        }?;
        Ok(())
    })?;
    Ok(out)
}

fn backward_input_of<T: Factor>(
    s: &ConvShape,
    tf32: bool,
    device: &CudaDevice,
    weight: &CudaView<T>,
    dy: &CudaView<T>,
) -> Result<CudaSlice<T>> {
    check([
        ("output", dy.len(), s.out_len()),
        ("weight", weight.len(), s.weight_len()),
    ])?;
    let mut dx = cuda::alloc::<T>(device, s.in_len())?;
    with_state(device, |state| {
        let descriptors = Descriptors::<T>::new(&state.cudnn, s, tf32)?;
        let op = ConvBackwardData {
            conv: &descriptors.convolution,
            dx: &descriptors.input,
            w: &descriptors.weight,
            dy: &descriptors.output,
        };
        let (algorithm, bytes) = chosen(
            &mut state.data,
            (*s, T::DTYPE, tf32),
            || op.pick_algorithm(),
            DataAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
            |algorithm| op.get_workspace_size(algorithm),
        )?;
        let workspace = room(&mut state.workspace, bytes, device)?;
        // SAFETY: as in `forward_of`.
        unsafe {
            op.launch(
                algorithm,
                Some(workspace),
                (T::one(), T::zero()),
                &mut dx,
                weight,
                dy,
            )
        }?;
        Ok(())
    })?;
    Ok(dx)
}

fn backward_weight_of<T: Factor>(
    s: &ConvShape,
    tf32: bool,
    device: &CudaDevice,
    x: &CudaView<T>,
    dy: &CudaView<T>,
    dw: &mut CudaViewMut<T>,
) -> Result<()> {
    check([
        ("input", x.len(), s.in_len()),
        ("output", dy.len(), s.out_len()),
        ("weight", dw.len(), s.weight_len()),
    ])?;
    with_state(device, |state| {
        let descriptors = Descriptors::<T>::new(&state.cudnn, s, tf32)?;
        let op = ConvBackwardFilter {
            conv: &descriptors.convolution,
            x: &descriptors.input,
            dw: &descriptors.weight,
            dy: &descriptors.output,
        };
        let (algorithm, bytes) = chosen(
            &mut state.filter,
            (*s, T::DTYPE, tf32),
            || op.pick_algorithm(),
            FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
            |algorithm| op.get_workspace_size(algorithm),
        )?;
        let workspace = room(&mut state.workspace, bytes, device)?;
        // SAFETY: as in `forward_of`.
        unsafe { op.launch(algorithm, Some(workspace), (T::one(), T::zero()), x, dw, dy) }?;
        Ok(())
    })
}

/// The choice made for `key` before, or what cuDNN picks, or should that not work `other`, with the bytes of
/// the workspace that `bytes` tells.
fn chosen<A: Copy>(
    choices: &mut Choices<A>,
    key: (ConvShape, DType, bool),
    pick: impl FnOnce() -> std::result::Result<A, CudnnError>,
    other: A,
    bytes: impl Fn(A) -> std::result::Result<usize, CudnnError>,
) -> Result<(A, usize)> {
    if let Some(choice) = choices.get(&key) {
        return Ok(*choice);
    }
    let sized = |algorithm| Ok::<_, CudnnError>((algorithm, bytes(algorithm)?));
    let choice = pick().and_then(sized).or_else(|_| sized(other))?;
    choices.insert(key, choice);
    Ok(choice)
}

/// Each of what, its length, and the length expected.
fn check<const N: usize>(lengths: [(&str, usize, usize); N]) -> Result<()> {
    for (what, found, expected) in lengths {
        if found != expected {
            bail!("a convolution's {what} has {found} numbers, expected {expected}");
        }
    }
    Ok(())
}
