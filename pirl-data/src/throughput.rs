//! How fast a loader alone makes batches, and what limits it.

use std::time::{Duration, Instant};

use candle_core::Device;
use serde_json::{Map, Value, json};

use crate::error::DataError;
use crate::loader::Loader;
use crate::pack::Pack;
use crate::stages::Stages;

/// What some seconds of loading came to.
#[derive(Clone, Debug)]
pub struct Throughput {
    /// In all batches.
    pub images: usize,
    /// Of the encoded images.
    pub bytes: usize,
    /// Broken images that others took the place of.
    pub skipped: usize,
    /// How long it took.
    pub seconds: f64,
    /// Seconds that batches were waited for.
    pub waiting: f64,
    /// What the loader's threads were busy with.
    pub stages: Stages,
    /// The most memory this process held that is no file's pages, in KiB; Linux only.
    pub anonymous_kib: Option<f64>,
}

/// What limits a loader's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// Whoever takes the batches.
    Consumer,
    /// Reading the encoded images.
    Disk,
    /// The threads that decode and transform images.
    Workers,
}

impl Throughput {
    /// Takes batches of the images of `pack` from their `loader` until `time` is over, after a
    /// first, with which the threads start, and normalises them, as a training step on a CPU does.
    ///
    /// # Errors
    ///
    /// Fails if a batch cannot be made.
    pub fn measure(loader: &Loader, pack: &Pack, time: Duration) -> Result<Self, DataError> {
        let mut epochs = 0..;
        let mut batches = None;
        let mut next = || loop {
            match batches.iter_mut().flatten().next() {
                Some(batch) => return batch,
                None => {
                    batches = epochs
                        .next()
                        .map(|epoch| loader.epoch(epoch, 0))
                        .transpose()?
                }
            }
        };
        next()?;
        loader.measure();
        let mut found = Self {
            images: 0,
            bytes: 0,
            skipped: 0,
            seconds: 0.0,
            waiting: 0.0,
            stages: Stages::default(),
            anonymous_kib: None,
        };
        let start = Instant::now();
        while found.images == 0 || start.elapsed() < time {
            let asked = Instant::now();
            let batch = next()?;
            found.waiting += asked.elapsed().as_secs_f64();
            for views in [Some(&batch.images), batch.transformed.as_ref()] {
                let numbers = views.map(|views| batch.normalize.apply(views, &Device::Cpu));
                std::hint::black_box(numbers.transpose()?);
            }
            found.images += batch.indices.len();
            found.skipped += batch.skipped;
            let sizes = batch
                .indices
                .iter()
                .map(|index| pack.bytes(*index as usize));
            found.bytes += sizes.flatten().map(<[u8]>::len).sum::<usize>();
            let held = found.anonymous_kib.into_iter().chain(anonymous_kib());
            found.anonymous_kib = held.reduce(f64::max);
        }
        found.seconds = start.elapsed().as_secs_f64();
        found.stages = loader.stages();
        Ok(found)
    }

    /// The mean over the time that was measured.
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// Of the encoded images, likewise.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }

    /// Each stage's share of the threads' time.
    pub fn shares(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let stages = self.stages.each();
        let all: Duration = stages.iter().map(|(_, time)| *time).sum();
        let all = all.as_secs_f64().max(f64::MIN_POSITIVE);
        stages
            .into_iter()
            .map(move |(name, time)| (name, time.as_secs_f64() / all))
    }

    /// What limits the loader: the consumer where batches are hardly waited for, else the disk where
    /// reading takes most of the threads' time.
    pub fn bottleneck(&self) -> Bottleneck {
        const WAITING: f64 = 0.05;
        const READING: f64 = 0.5;
        let read = self.shares().find(|(name, _)| *name == "read");
        if self.waiting < WAITING * self.seconds {
            Bottleneck::Consumer
        } else if read.is_some_and(|(_, share)| share >= READING) {
            Bottleneck::Disk
        } else {
            Bottleneck::Workers
        }
    }
}

impl Throughput {
    /// These numbers, speeds and shares as JSON.
    pub fn to_json(&self) -> Value {
        let shares = self.shares();
        let shares: Map<String, Value> = shares
            .map(|(name, share)| (name.to_owned(), json!(share)))
            .collect();
        json!({
            "images_per_second": self.images_per_second(),
            "megabytes_per_second": self.megabytes_per_second(),
            "stages": shares,
            "limit": self.bottleneck().to_string(),
            "waiting": self.waiting / self.seconds,
            "images": self.images,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "anonymous_mib": self.anonymous_kib.map(|kib| kib / 1024.0),
        })
    }

    /// The speed of so many workers, each stage's share of their time, and what limits them, in words.
    pub fn describe(&self, workers: usize, batch_size: usize) -> String {
        let (rate, megabytes) = (self.images_per_second(), self.megabytes_per_second());
        let mut text = format!(
            "{rate:.1} images/s, {megabytes:.1} MB/s ({workers} workers, batches of {batch_size})\n"
        );
        for (name, share) in self.shares() {
            text += &format!("  {name:<12} {:>5.1} %\n", share * 100.0);
        }
        text += &format!("limited by the {}", self.bottleneck());
        if let Some(kib) = self.anonymous_kib {
            text += &format!("\nanonymous memory: {:.0} MiB", kib / 1024.0);
        }
        if self.skipped > 0 {
            text += &format!("\n{} broken images skipped", self.skipped);
        }
        text
    }
}

impl std::fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Consumer => "consumer",
            Self::Disk => "disk",
            Self::Workers => "workers",
        })
    }
}

/// `RssAnon` of this process, on Linux.
fn anonymous_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottleneck_is_what_others_wait_for() {
        let found = |waiting, read, decode| Throughput {
            images: 1,
            bytes: 1,
            skipped: 0,
            seconds: 10.0,
            waiting,
            stages: Stages {
                read: Duration::from_secs(read),
                decode: Duration::from_secs(decode),
                ..Stages::default()
            },
            anonymous_kib: None,
        };
        assert_eq!(found(0.1, 9, 1).bottleneck(), Bottleneck::Consumer);
        assert_eq!(found(9.0, 9, 1).bottleneck(), Bottleneck::Disk);
        assert_eq!(found(9.0, 1, 9).bottleneck(), Bottleneck::Workers);
        assert_eq!(found(9.0, 0, 0).bottleneck(), Bottleneck::Workers);
        let shares: Vec<_> = found(9.0, 1, 3).shares().collect();
        assert_eq!(shares[..2], [("read", 0.25), ("decode", 0.75)]);
    }
}
