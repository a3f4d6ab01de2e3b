//! A bank of embeddings, and a sampler of one's own: negatives are the rows nearest to the batch.
//!
//!     cargo run --release -p pirl-bank --example own_sampler -- bank.safetensors
use std::error::Error;

use candle_core::{Device, Tensor};
use pirl_bank::{BankError, Drawn, MemoryBank, NegativeSampler, SharedSampler};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// Keeps those rows of a larger draw that are most similar to some image of the batch.
struct Hardest {
    rows: Tensor,
    /// Rows drawn for each that is kept.
    factor: usize,
}

impl NegativeSampler for Hardest {
    fn draw(
        &self,
        bank_rows: usize,
        batch: &[u32],
        count: usize,
        rng: &mut dyn Rng,
    ) -> Result<Drawn, BankError> {
        let more = (self.factor * count).min(bank_rows - 1);
        let drawn = SharedSampler.draw(bank_rows, batch, more, rng)?;
        let candidates = Tensor::new(drawn.indices(), &Device::Cpu)?;
        let own = Tensor::new(batch, &Device::Cpu)?;
        let (candidates, own) =
            (self.rows.index_select(&candidates, 0)?, self.rows.index_select(&own, 0)?);
        let similarity = own.matmul(&candidates.t()?)?.max(0)?.to_vec1::<f32>()?;
        let mut order: Vec<usize> = (0..more).collect();
        order.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]));
        let indices: Vec<u32> =
            order[..count].iter().map(|&place| drawn.indices()[place]).collect();
        // An image of the batch may be among the rows: its column is masked in its own sums.
        let place = |image: &u32| indices.iter().position(|index| index == image);
        let own = batch.iter().map(|image| place(image).map(|place| place as u32)).collect();
        Ok(Drawn::Shared { indices, own })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: own_sampler BANK.safetensors")?;
    let mut bank = MemoryBank::random(2000, 32, 0.5, 0, &Device::Cpu)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let batch = [3, 14, 159, 265];
    let own = bank.gather(&batch)?;

    let hardest = Hardest { rows: bank.rows().clone(), factor: 8 };
    let samplers: [(&str, &dyn NegativeSampler); 2] =
        [("shared", &SharedSampler), ("hardest", &hardest)];
    for (name, sampler) in samplers {
        let drawn = sampler.draw(bank.len(), &batch, 100, &mut rng)?;
        let rows = bank.gather(drawn.indices())?;
        let similarity = own.matmul(&rows.t()?)?.max(0)?.mean_all()?.to_scalar::<f32>()?;
        println!("{name}: similarity {similarity:.3}");
    }

    // After a step the rows of its images move half way to their new embeddings.
    let embeddings = MemoryBank::random(batch.len(), 32, 0.5, 2, &Device::Cpu)?;
    bank.update(&batch, embeddings.rows())?;
    bank.save(&path)?;
    let loaded = MemoryBank::load(&path, 2000, 32, 0.5)?;
    let norm = loaded.rows().sqr()?.sum(1)?.max(0)?.to_scalar::<f32>()?;
    println!("{path}: {} rows of norm {norm:.3}", loaded.len());
    Ok(())
}
