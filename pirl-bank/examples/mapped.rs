//! How fast a bank in a mapped file is beside one in memory.
//!
//! ```sh
//! cargo run --release -p pirl-bank --example mapped -- FOLDER [ROWS] [f32|bf16]
//! ```
//!
//! Opens a bank of ROWS rows of 128 numbers in FOLDER (a sparse file: it takes the room of what is
//! written), and times what a step does: to draw and gather 32,000 negatives, to gather and update 1,024
//! rows; beside the same in memory with at most 1.28 million rows.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use pirl_bank::{
    BankPrecision, MappedBank, MappedConfig, MemoryBank, NegativeSampler, SharedSampler,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const DIM: usize = 128;
const NEGATIVES: usize = 32_000;
const BATCH: usize = 1024;
const STEPS: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = arguments.first() else {
        return Err("give a folder for the bank".into());
    };
    let rows = arguments.get(1).map_or(Ok(100_000), |rows| rows.parse())?;
    let precision = match arguments.get(2).map(String::as_str) {
        Some("bf16") => BankPrecision::Bf16,
        _ => BankPrecision::F32,
    };
    let config = MappedConfig { first: 0, rows, dim: DIM, momentum: 0.5, precision, seed: 1 };
    let started = Instant::now();
    let mut mapped = MappedBank::open(Path::new(folder), &config)?;
    println!("opened {rows} rows in {:.3} s", started.elapsed().as_secs_f64());
    let memory_rows = rows.min(1_280_000);
    let mut memory = MemoryBank::random(memory_rows, DIM, 0.5, 1, &Device::Cpu)?;
    let embeddings = MemoryBank::random(BATCH, DIM, 0.5, 2, &Device::Cpu)?;
    let embeddings = embeddings.rows();

    // In turn, so that both see the same machine; the rows drawn are the same in each round.
    for round in 0..3 {
        let (mut in_file, mut in_memory) = (Vec::new(), Vec::new());
        for step in 0..STEPS {
            let mut rng = ChaCha8Rng::seed_from_u64(step as u64);
            let started = Instant::now();
            let batch: Vec<u32> =
                (0..BATCH).map(|k| ((k * 97 + step * 7919) % rows) as u32).collect();
            let drawn = SharedSampler.draw(rows, &batch, NEGATIVES, &mut rng)?;
            mapped.gather(drawn.indices())?;
            mapped.update(&batch, embeddings)?;
            in_file.push(started.elapsed().as_secs_f64());
            let started = Instant::now();
            let batch: Vec<u32> = batch.iter().map(|row| row % memory_rows as u32).collect();
            let drawn = SharedSampler.draw(memory_rows, &batch, NEGATIVES, &mut rng)?;
            memory.gather(drawn.indices())?;
            memory.update(&batch, embeddings)?;
            in_memory.push(started.elapsed().as_secs_f64());
        }
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            1e3 * times[times.len() / 2]
        };
        let (file, memory) = (median(&mut in_file), median(&mut in_memory));
        println!("round {round}: {file:.1} ms a step, in memory {memory:.1} ms");
    }
    // Pages of the file that are mapped are the page cache's.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("Rss")) {
        println!("{line}");
    }
    Ok(())
}
