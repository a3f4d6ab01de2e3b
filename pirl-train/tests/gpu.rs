//! Steps on a GPU take those of the CPU, and NCCL adds up in its memory. Without a GPU each test says so on
//! standard error.

mod common;

use candle_core::Device;
use common::{LR, backbone, batch, cut, objective};
use pirl_bank::SharedSampler;
use pirl_model::Ops;
use pirl_train::Learner;

/// The first GPU, or a line that says why a test is skipped.
fn gpu(test: &str) -> Option<Device> {
    #[cfg(feature = "cuda")]
    let found = pirl_model::cuda::open(0);
    #[cfg(not(feature = "cuda"))]
    let found: candle_core::Result<Device> = Err(candle_core::Error::msg("built without CUDA"));
    benches::or_skip(test, found)
}

/// The losses of four steps with parts of eight images, and the weights after them.
fn steps(devices: &[Device]) -> (Vec<f32>, Vec<f32>) {
    let objective = objective(Ops::Fast).sampler(SharedSampler).seed(5);
    let learner = Learner::builder(
        |device| backbone(Ops::Fast, device),
        objective.build().unwrap(),
    );
    let mut learner = learner.devices(devices).build().unwrap();
    let losses = (0..4).map(|step| {
        let parts = cut(&batch(step as usize), 8).into_iter().map(Ok);
        learner.step(parts, step + 1, LR).unwrap().total
    });
    let losses = losses.collect();
    let weights = learner.backbone().parameter_sets()[0].var().to_vec1();
    (losses, weights.unwrap())
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "built without CUDA")]
fn a_gpu_and_two_copies_on_it_take_the_steps_of_the_cpu() {
    let Some(device) = gpu("steps") else { return };
    let (losses, weights) = steps(&[Device::Cpu]);
    for devices in [vec![device.clone()], vec![device.clone(), device.clone()]] {
        let (found, moved) = steps(&devices);
        for (found, expected) in found.iter().zip(&losses) {
            let error = (found / expected - 1.0).abs();
            assert!(
                error < 1e-4,
                "{} devices: {found}, not {expected}",
                devices.len()
            );
        }
        let pairs = moved.iter().zip(&weights);
        let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            largest < 1e-3,
            "{} devices: weights differ by {largest}",
            devices.len()
        );
    }
}

#[test]
#[cfg(feature = "nccl")]
fn nccl_adds_up_in_the_memory_of_a_gpu() {
    use candle_core::Tensor;
    use pirl_train::{Collective, Nccl, alone};

    let Some(device) = gpu("nccl") else { return };
    let ranks = Nccl::new(alone(), device.as_cuda_device().unwrap()).unwrap();
    assert_eq!((ranks.rank(), ranks.size()), (0, 1));
    let numbers: Vec<f32> = (0..1 << 20).map(|i| (i as f32).sin()).collect();
    let whole = Tensor::from_slice(&numbers, numbers.len(), &device).unwrap();
    // The sum of one rank is what it has, in a part of a tensor, too.
    for (start, len) in [(0, numbers.len()), (1000, 70_001)] {
        let part = whole.narrow(0, start, len).unwrap();
        assert!(ranks.all_reduce_on_device(&part).unwrap());
        assert_eq!(part.to_vec1::<f32>().unwrap(), numbers[start..start + len]);
    }
    let elsewhere = Tensor::from_slice(&numbers, numbers.len(), &Device::Cpu).unwrap();
    assert!(!ranks.all_reduce_on_device(&elsewhere).unwrap());
}
