//! `--device`.

#[cfg(feature = "cuda")]
use anyhow::Context;
use anyhow::{Result, bail};
use candle_core::Device;

use crate::ranks;

/// Devices with commas between them, as `cuda:0,cuda:1`; one named twice does the work of two.
pub(crate) fn parse_several(names: &str) -> Result<Vec<Device>> {
    names.split(',').map(parse).collect()
}

/// `cpu`, or `cuda:N` in a build that has CUDA; `cuda:local` is the GPU numbered as this rank is on its machine.
pub(crate) fn parse(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let number: Option<usize> = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(":local") => Some(ranks::local()?),
        Some(rest) => rest
            .strip_prefix(':')
            .and_then(|number| number.parse().ok()),
        None => None,
    };
    match number {
        #[cfg(feature = "cuda")]
        Some(number) => pirl_model::cuda::open(number).with_context(|| format!("--device {name}")),
        #[cfg(not(feature = "cuda"))]
        Some(_) => bail!(
            "--device {name}: this program was built without CUDA; use --device cpu, or build it with \
             `cargo build --release -p pirl-cli --features cuda`, which needs NVIDIA's CUDA toolkit \
             (`--features cudnn`: cuDNN as well)"
        ),
        None => bail!(
            "--device {name:?}: expected cpu or cuda:N, or with pretrain several, as cuda:0,cuda:1, or \
             cuda:local"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_cpu_or_a_numbered_gpu() {
        assert!(parse("cpu").unwrap().is_cpu());
        for wrong in ["gpu", "cuda:x", "cuda0", ""] {
            let error = format!("{:#}", parse(wrong).unwrap_err());
            assert!(error.contains("expected cpu or cuda:N"), "{error}");
        }
    }

    #[test]
    fn several_devices_have_commas_between_them() {
        assert_eq!(parse_several("cpu").unwrap().len(), 1);
        assert_eq!(parse_several("cpu,cpu,cpu").unwrap().len(), 3);
        for wrong in ["cpu,", ",cpu", "cpu, cpu", "cpu,gpu"] {
            let error = format!("{:#}", parse_several(wrong).unwrap_err());
            assert!(error.contains("expected cpu or cuda:N"), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_cuda_the_message_says_what_to_build() {
        for name in ["cuda", "cuda:0", "cuda:3"] {
            let error = format!("{:#}", parse(name).unwrap_err());
            assert!(error.contains("--features cuda"), "{error}");
        }
    }
}
