//! Non-maximum suppression on a CUDA device, by the kernels of `nms.cu`.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, DType, Result, bail};
use pirl_model::cuda::{self, Kernels};

use super::super::boxes::BBox;

static KERNELS: Kernels = Kernels::new("nms", include_str!("../nms.cu"));

/// Boxes of a word of overlaps, and threads of a block that finds them.
const BITS: usize = 64;
/// Boxes that the kernels can take.
const MOST_BOXES: usize = 4096 * BITS;
/// Threads of the block that goes through the boxes.
const THREADS: u32 = 256;

/// Whether so many boxes are worth the way to the device and back, and fit.
pub(super) fn takes(count: usize) -> bool {
    (512..=MOST_BOXES).contains(&count)
}

/// The first `most` boxes of `order`, by falling score, that overlap none kept before them of their
/// class by more than the threshold.
pub(super) fn suppress(
    boxes: &[BBox],
    classes: &[usize],
    order: &[usize],
    threshold: f32,
    most: usize,
    device: &CudaDevice,
) -> Result<Vec<usize>> {
    let (count, most) = (order.len(), most.min(order.len()));
    let sorted: Vec<BBox> = order.iter().map(|&index| boxes[index]).collect();
    let class = |&index: &usize| cuda::int(classes[index]);
    let classes = order.iter().map(class).collect::<Result<Vec<i32>>>()?;
    let boxes = device.clone_htod(sorted.as_flattened())?;
    let classes = device.clone_htod(&classes)?;
    let words = count.div_ceil(BITS);
    let mut overlaps = cuda::alloc::<u64>(device, count * words)?;
    let (boxes_count, most_kept) = (cuda::int(count)?, cuda::int(most)?);

    let kernel = KERNELS.get(device, "nms_overlaps", DType::F32)?;
    let mut launch = kernel.launch();
    launch.arg(&boxes).arg(&classes).arg(&boxes_count);
    launch.arg(&threshold).arg(&mut overlaps);
    let config = LaunchConfig {
        grid_dim: (words as u32, words as u32, 1),
        block_dim: (BITS as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: there are `count` boxes and classes, and a row of `words` words for each.
    unsafe { launch.launch(config) }.w()?;

    // How many stay, and which; the rest of it is not written.
    let mut kept = device.alloc_zeros::<i32>(1 + most)?;
    let kernel = KERNELS.get(device, "nms_keep", DType::F32)?;
    let mut launch = kernel.launch();
    launch.arg(&overlaps).arg(&boxes_count).arg(&most_kept);
    launch.arg(&mut kept);
    let config = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the rows just written; `takes` saw that they have as many words as the kernel has room
    // for; it writes at most 1 + `most` numbers.
    unsafe { launch.launch(config) }.w()?;
    let kept = device.clone_dtoh(&kept)?;
    let stay = match kept.split_first() {
        Some((&found, numbers)) => numbers.get(..found as usize),
        None => None,
    };
    let index = |&number: &i32| order.get(number as usize).copied();
    match stay.and_then(|numbers| numbers.iter().map(index).collect()) {
        Some(stay) => Ok(stay),
        None => bail!("suppressing {count} boxes on the device named boxes that are not there"),
    }
}
