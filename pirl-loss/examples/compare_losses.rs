//! The three contrastive losses on the same embeddings: how hard each pulls.
//!
//! Two views of each image are free vectors, moved by gradient descent on the loss of equation (6).
//! Printed are the mean cosine of the views with their image's row of the bank, which rises, and the
//! greatest with a negative, which falls.
//!
//!     cargo run --release -p pirl-loss --example compare_losses
use std::error::Error;

use candle_core::{D, Device, Tensor, Var};
use pirl_loss::{ContrastiveLoss, InfoNce, Nce, Negatives, Paper, total_loss};

const BATCH: usize = 16;
const DIM: usize = 64;
const NEGATIVES: usize = 256;
const TEMPERATURE: f64 = 0.07;

fn main() -> Result<(), Box<dyn Error>> {
    let device = &Device::Cpu;
    let normal = |rows| Tensor::randn(0f32, 1.0, (rows, DIM), device);
    let positive = unit(&normal(BATCH)?)?; // m_I
    let negatives = Negatives::Shared { rows: unit(&normal(NEGATIVES)?)?, own: vec![None; BATCH] };
    let start = (normal(BATCH)?, normal(BATCH)?);

    // ln Z of the released code: usually estimated from the first batch, here of random vectors.
    let log_z = (NEGATIVES as f64).ln() + 0.5 / (DIM as f64 * TEMPERATURE * TEMPERATURE);
    let losses: [(&str, Box<dyn ContrastiveLoss>); 3] = [
        ("paper", Box::new(Paper::new(TEMPERATURE)?)),
        ("nce", Box::new(Nce::new(TEMPERATURE, NEGATIVES, log_z)?)),
        ("infonce", Box::new(InfoNce::new(TEMPERATURE)?)),
    ];
    for (name, loss) in losses {
        let image = Var::from_tensor(&start.0)?; // before normalisation: f(I)
        let patches = Var::from_tensor(&start.1)?; // g(I^t)
        for step in 0..=20 {
            let (f, g) = (unit(&image)?, unit(&patches)?);
            let image_term = loss.forward(&f, &positive, &negatives)?;
            let patch_term = loss.forward(&g, &positive, &negatives)?;
            let total = total_loss(0.5, &patch_term, &image_term)?;
            if step % 10 == 0 {
                let own = (&f * &positive)?.sum(D::Minus1)?.mean_all()?.to_scalar::<f32>()?;
                let Negatives::Shared { rows, .. } = &negatives else { unreachable!() };
                let others = f.matmul(&rows.t()?)?.max_all()?.to_scalar::<f32>()?;
                let total = total.to_scalar::<f32>()?;
                println!("{name} step {step} loss {total:.3} own {own:.3} others {others:.3}");
            }
            let gradients = total.backward()?;
            for view in [&image, &patches] {
                if let Some(gradient) = gradients.get(view) {
                    view.set(&(view.as_tensor() - (gradient * 20.0)?)?)?;
                }
            }
        }
    }
    Ok(())
}

fn unit(x: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
