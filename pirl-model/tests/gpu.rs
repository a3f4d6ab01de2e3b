//! What only a GPU can show: the order of work that copies and threads share, and its memory. Without
//! one each test says so on standard error; `pirl doctor --device cuda:0` compares every op.

#[cfg(feature = "cuda")]
use std::io::Write;

use candle_core::{Device, Tensor};
use pirl_model::Upload;

/// The first GPU, or a line that says why a test is skipped.
fn gpu(test: &str) -> Option<Device> {
    #[cfg(feature = "cuda")]
    let found = pirl_model::cuda::open(0);
    #[cfg(not(feature = "cuda"))]
    let found: candle_core::Result<Device> = Err(candle_core::Error::msg("built without CUDA"));
    benches::or_skip(test, found)
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "built without CUDA")]
fn uploads_arrive_in_order_beside_other_work() {
    let Some(device) = gpu("uploads") else { return };
    let mut upload = Upload::new(&device).unwrap();
    let busy = Tensor::ones((2048, 2048), candle_core::DType::F32, &device).unwrap();
    let (mut sent, mut arrived) = (Vec::new(), Vec::new());
    for round in 0..64u32 {
        // Two sizes, each with buffers of its own, used again while the device is still at work.
        let len = [1 << 20, 300_001][round as usize % 2];
        let bytes: Vec<u8> = (0..len).map(|i: u32| (i * 31 + round * 7) as u8).collect();
        let views = Tensor::from_vec(bytes.clone(), len as usize, &Device::Cpu).unwrap();
        arrived.push(upload.send(&views).unwrap());
        sent.push(bytes);
        busy.matmul(&busy).unwrap();
    }
    for (round, (arrived, sent)) in arrived.iter().zip(&sent).enumerate() {
        let arrived: Vec<u8> = arrived.to_vec1().unwrap();
        assert!(arrived == *sent, "upload {round} differs");
    }
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "built without CUDA")]
fn work_of_one_thread_is_done_before_that_of_the_next() {
    let Some(device) = gpu("threads") else { return };
    let ones = Tensor::ones((1024, 1024), candle_core::DType::F32, &device).unwrap();
    for _ in 0..20 {
        // A long chain, which the device still works at when another thread takes over.
        let last = std::thread::scope(|scope| {
            let chain = scope.spawn(|| {
                let mut x = ones.clone();
                for _ in 0..50 {
                    x = (x.matmul(&ones).unwrap() / 1024.0).unwrap();
                }
                x
            });
            chain.join().unwrap()
        });
        let sum = (last + 1.0).unwrap().sum_all().unwrap();
        assert_eq!(sum.to_scalar::<f32>().unwrap(), 2.0 * 1024.0 * 1024.0);
    }
}

#[test]
#[cfg(feature = "cuda")]
fn the_peak_of_its_memory_is_counted() {
    let Some(device) = gpu("memory") else { return };
    let gpu = device.as_cuda_device().unwrap();
    let peak = || pirl_model::cuda::take_peak_memory(gpu).unwrap();
    let Some(before) = peak() else {
        let _ = writeln!(
            std::io::stderr(),
            "memory: skipped, the driver does not count it"
        );
        return;
    };
    drop(Tensor::zeros(64 << 20, candle_core::DType::U8, &device).unwrap());
    device.synchronize().unwrap();
    let during = peak().unwrap();
    assert!(during >= 64 << 20, "{before}, then {during}");
    let after = peak().unwrap();
    assert!(after <= during - (64 << 20), "{during}, then {after}");
}
