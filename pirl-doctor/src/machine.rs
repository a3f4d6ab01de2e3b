//! What program this is and the device it runs on.

use std::fmt;

use candle_core::{Device, Result};
use pirl_core::Instructions;
use serde::Serialize;

/// Versions of the program and of what it is made of.
#[derive(Debug, Serialize)]
pub struct Versions {
    pirl: &'static str,
    candle: Option<&'static str>,
    /// Cargo features of this build: cuda, cudnn.
    features: Vec<&'static str>,
    /// NVIDIA's driver API and, in a build with it, cuDNN; major times 1000.
    cuda_driver: Option<i64>,
    cudnn: Option<i64>,
}

impl Versions {
    /// Of this build; `candle` is the version of candle-core, where it is known. cuDNN is asked for its
    /// version if `device` is a GPU: elsewhere it need not be installed.
    pub fn new(candle: Option<&'static str>, device: &Device) -> Self {
        let features = [
            ("cuda", cfg!(feature = "cuda")),
            ("cudnn", cfg!(feature = "cudnn")),
        ];
        Self {
            pirl: env!("CARGO_PKG_VERSION"),
            candle,
            features: features
                .into_iter()
                .filter_map(|(name, on)| on.then_some(name))
                .collect(),
            cuda_driver: cuda_driver(),
            cudnn: if device.is_cuda() { cudnn() } else { None },
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda_driver() -> Option<i64> {
    use candle_core::cuda::cudarc::driver::sys::{CUresult, cuDriverGetVersion};
    let mut version = 0;
    // SAFETY: it writes one integer.
    let result = unsafe { cuDriverGetVersion(&mut version) };
    (result == CUresult::CUDA_SUCCESS).then(|| version.into())
}

#[cfg(not(feature = "cuda"))]
fn cuda_driver() -> Option<i64> {
    None
}

#[cfg(feature = "cudnn")]
fn cudnn() -> Option<i64> {
    i64::try_from(candle_core::cuda::cudarc::cudnn::result::get_version()).ok()
}

#[cfg(not(feature = "cudnn"))]
fn cudnn() -> Option<i64> {
    None
}

/// The device that is looked at.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// As `--device` names it.
    pub name: String,
    /// Its maker's name for it.
    model: Option<String>,
    /// Of a GPU, such as 9.0.
    compute_capability: Option<String>,
    memory_mib: Option<u64>,
    free_mib: Option<u64>,
    /// Of this process on the CPU.
    threads: usize,
    /// Sets of vector instructions that the fast ops use, by their [`Instructions::name`].
    instructions: Vec<&'static str>,
}

impl Machine {
    /// Describes `device`, which `--device` calls `name`.
    ///
    /// # Errors
    ///
    /// Fails if a GPU's driver does not answer.
    pub fn of(name: &str, device: &Device) -> Result<Self> {
        let mut machine = Self {
            name: name.to_owned(),
            model: None,
            compute_capability: None,
            memory_mib: None,
            free_mib: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: instructions(),
        };
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let stream = device.cuda_stream();
                let context = stream.context();
                let (major, minor) = context.compute_capability().map_err(driver)?;
                let (free, total) = context.mem_get_info().map_err(driver)?;
                machine.model = Some(context.name().map_err(driver)?);
                machine.compute_capability = Some(format!("{major}.{minor}"));
                machine.memory_mib = Some(total as u64 >> 20);
                machine.free_mib = Some(free as u64 >> 20);
            }
            _ => {
                let kib = |file: &str, key: &str| {
                    proc_line(file, key)?.split(' ').next()?.parse::<u64>().ok()
                };
                machine.model = proc_line("/proc/cpuinfo", "model name");
                machine.memory_mib = kib("/proc/meminfo", "MemTotal").map(|kib| kib / 1024);
                machine.free_mib = kib("/proc/meminfo", "MemAvailable").map(|kib| kib / 1024);
            }
        }
        Ok(machine)
    }
}

/// What follows `key:` in a file below Linux's `/proc`.
fn proc_line(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

#[cfg(feature = "cuda")]
fn driver(error: candle_core::cuda::cudarc::driver::DriverError) -> candle_core::Error {
    candle_core::Error::Cuda(Box::new(error))
}

fn instructions() -> Vec<&'static str> {
    let sets = Instructions::ALL.into_iter();
    let vectors = sets.filter(|set| *set > Instructions::Baseline);
    let used = vectors.filter(|set| *set <= Instructions::in_use());
    used.map(Instructions::name).collect()
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pirl {} on Candle {}",
            self.pirl,
            self.candle.unwrap_or("?")
        )?;
        match self.features.as_slice() {
            [] => write!(f, ", built without CUDA")?,
            features => write!(f, ", built with {}", features.join(", "))?,
        }
        for (name, version) in [("driver", self.cuda_driver), ("cuDNN", self.cudnn)] {
            if let Some(version) = version {
                write!(f, ", {name} {version}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            self.name,
            self.model.as_deref().unwrap_or("unknown")
        )?;
        if let Some(capability) = &self.compute_capability {
            write!(f, ", compute capability {capability}")?;
        }
        if let (Some(memory), Some(free)) = (self.memory_mib, self.free_mib) {
            write!(f, ", {memory} MiB, {free} free")?;
        }
        write!(f, "; {} CPU threads", self.threads)?;
        match self.instructions.as_slice() {
            [] => Ok(()),
            instructions => write!(f, " with {}", instructions.join(", ")),
        }
    }
}
