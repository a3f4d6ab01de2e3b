//! Damaged files of weights: whatever the bytes, no panic, no hang, and no memory that the bytes do not
//! justify. `PIRL_MUTATIONS` sets how many there are of each kind, by default 1,000.

#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use pirl_model::{
    Arch, Export, ExportView, ModelConfig, ResNet, Trainable, exporter, save_state_dict,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Weights are held as stored, as tensors, and once more while they are checked; what is mutated has at most
/// 11 MB of them (a ResNet-18 of quarter width, in files that repeat one storage).
const MEMORY: usize = 256 << 20;
const TIME: Duration = Duration::from_secs(20);

#[global_allocator]
static ALLOCATOR: benches::Counting = benches::Counting;

/// Changes a file in one to four ways, in its first and last bytes most often: names and shapes are there.
fn mutate(rng: &mut ChaCha8Rng, files: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = files[rng.random_range(0..files.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let near = bytes.len().min(8192);
        let at = match rng.random_range(0..3) {
            0 => rng.random_range(0..bytes.len()),
            1 => rng.random_range(0..near),
            _ => bytes.len() - 1 - rng.random_range(0..near),
        };
        let end = (at + rng.random_range(1..=16_usize)).min(bytes.len());
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at..end].fill(0xFF),
            3 => rng.fill_bytes(&mut bytes[at..end]),
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..end)),
            // A number in text stays one: a header with another length or shape.
            _ => {
                let digits = bytes[at..].iter().take(4096).position(u8::is_ascii_digit);
                if let Some(place) = digits {
                    bytes[at + place] = b'0' + rng.random_range(0..10_u8);
                }
            }
        }
    }
    bytes
}

fn survive(name: &str, files: &[Vec<u8>], seed: u64, parse: impl Fn(&[u8])) {
    let wanted = std::env::var("PIRL_MUTATIONS").ok();
    let count = wanted.map_or(1_000, |count| count.parse().expect("a number"));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..count {
        let bytes = mutate(&mut rng, files);
        let started = Instant::now();
        let ((), taken) = benches::peak_of(|| parse(&bytes));
        let time = started.elapsed();
        assert!(taken < MEMORY, "{name} {number} took {taken} bytes");
        assert!(time < TIME, "{name} {number} took {time:?}");
    }
}

// One test, for the memory is counted for the whole process.
#[test]
fn no_file_of_weights_is_trusted() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights");
    let names = [
        "command.pth",
        "legacy.pth",
        "moco.pth.tar",
        "parallel.pth.tar",
        "pycontrast.pth",
        "timm.pth",
        "torchvision.pth",
        "vissl.torch",
    ];
    let files = names.map(|name| fs::read(golden.join(name)).unwrap());
    survive("pth", &files, 1, parsers::pth);

    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        arch: Arch::Resnet10,
        width: 0.25,
        ..ModelConfig::default()
    };
    let network = ResNet::new(&config, 0, &Device::Cpu).unwrap();
    let path = folder.path().join("own.safetensors");
    save_state_dict(&path, &[("", &network as &dyn Trainable)]).unwrap();
    let own = fs::read(&path).unwrap();
    // Half of the numbers, in another type.
    let half = network.state().unwrap().into_iter().map(|(name, tensor)| {
        let tensor: Tensor = match tensor.dtype() {
            DType::F32 => tensor.to_dtype(DType::BF16).unwrap(),
            _ => tensor,
        };
        (name, tensor)
    });
    let half: std::collections::HashMap<String, Tensor> = half.collect();
    let path = folder.path().join("half.safetensors");
    candle_core::safetensors::save(&half, &path).unwrap();
    let half = fs::read(&path).unwrap();
    survive("safetensors", &[own, half], 2, parsers::safetensors);

    let path = folder.path().join("own.onnx");
    let export = Export {
        backbone: &network,
        precise_batch_norm: Some(80),
        view: ExportView {
            resize: 256,
            crop: 224,
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
        },
        card: "",
    };
    exporter("onnx").unwrap().write(&export, &path).unwrap();
    let onnx = fs::read(&path).unwrap();
    survive("onnx", &[onnx], 3, parsers::onnx);
}
