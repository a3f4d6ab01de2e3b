//! How the time spent on samples divides into stages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time that all worker threads together spent on each stage of their samples: see
/// [`crate::Loader::measure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Waiting for the sample's bytes: the disk, or the page cache.
    pub read: Duration,
    /// The sample's bytes to pixels.
    pub decode: Duration,
    /// Random crops, and resizing them.
    pub resample: Duration,
    /// Cutting patches; colours, sharpness, blur and flips.
    pub photometric: Duration,
    /// Writing the view into the batch.
    pub write: Duration,
}

impl Stages {
    /// All stages, by name, in the order of a sample.
    pub fn each(&self) -> [(&'static str, Duration); 5] {
        [
            ("read", self.read),
            ("decode", self.decode),
            ("resample", self.resample),
            ("photometric", self.photometric),
            ("write", self.write),
        ]
    }
}

/// A stage, by its place in [`Stages::each`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    Read,
    Decode,
    Resample,
    Photometric,
    Write,
}

/// Divides the time of a thread into stages, when it is running.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    last: Option<Instant>,
    spent: [Duration; 5],
}

impl Stopwatch {
    pub(crate) fn start(&mut self) {
        self.last = Some(Instant::now());
    }

    /// Counts the time since the last lap for `stage`.
    pub(crate) fn lap(&mut self, stage: Stage) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.spent[stage as usize] += now - *last;
            *last = now;
        }
    }

    /// Stops, and returns what was measured.
    fn stop(&mut self) -> [Duration; 5] {
        self.last = None;
        std::mem::take(&mut self.spent)
    }
}

/// The sum over all threads.
#[derive(Debug, Default)]
pub(crate) struct StageTotals {
    running: AtomicBool,
    nanoseconds: [AtomicU64; 5],
}

impl StageTotals {
    pub(crate) fn run(&self) {
        for total in &self.nanoseconds {
            total.store(0, Ordering::Relaxed);
        }
        self.running.store(true, Ordering::Relaxed);
    }

    pub(crate) fn running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, watch: &mut Stopwatch) {
        for (total, spent) in self.nanoseconds.iter().zip(watch.stop()) {
            total.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn stages(&self) -> Stages {
        let total = |stage: Stage| {
            Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed))
        };
        Stages {
            read: total(Stage::Read),
            decode: total(Stage::Decode),
            resample: total(Stage::Resample),
            photometric: total(Stage::Photometric),
            write: total(Stage::Write),
        }
    }
}
