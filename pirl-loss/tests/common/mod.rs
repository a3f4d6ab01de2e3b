//! Inputs that the tests of the losses share.
#![allow(dead_code)] // each test binary uses its part

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use pirl_core::Ops;
use pirl_loss::{ContrastiveLoss, InfoNce, LossError, Nce, Negatives, Paper, reference};

pub(crate) const DATASET_SIZE: usize = 997;

/// Rows of unit length from the shared formula, normalised in double precision and rounded.
pub(crate) fn unit(seed: u32, rows: usize, dim: usize) -> Vec<f32> {
    let mut values = benches::fill(seed, rows * dim);
    for row in values.chunks_exact_mut(dim) {
        let norm: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let norm = norm.sqrt();
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    values
}

pub(crate) fn tensor(values: &[f32], dim: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / dim, dim), &Device::Cpu).unwrap()
}

/// A batch of `b` queries and positives with `n` negatives out of the first rows of a bank.
pub(crate) struct Case {
    pub(crate) query: Tensor,
    pub(crate) positive: Tensor,
    pub(crate) negatives: Negatives,
}

impl Case {
    pub(crate) fn shared(b: usize, n: usize, dim: usize, own: Vec<Option<u32>>) -> Self {
        Self {
            query: tensor(&unit(1, b, dim), dim),
            positive: tensor(&unit(2, b, dim), dim),
            negatives: Negatives::Shared {
                rows: tensor(&unit(3, n, dim), dim),
                own,
            },
        }
    }

    pub(crate) fn per_image(b: usize, m: usize, dim: usize, indices: Vec<u32>) -> Self {
        Self {
            query: tensor(&unit(1, b, dim), dim),
            positive: tensor(&unit(2, b, dim), dim),
            negatives: Negatives::PerImage {
                bank: tensor(&unit(3, m, dim), dim),
                indices,
            },
        }
    }

    /// The same in double precision, which the fused op does not cover.
    pub(crate) fn f64(&self) -> Self {
        let cast = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let negatives = match &self.negatives {
            Negatives::Shared { rows, own } => Negatives::Shared {
                rows: cast(rows),
                own: own.clone(),
            },
            Negatives::PerImage { bank, indices } => Negatives::PerImage {
                bank: cast(bank),
                indices: indices.clone(),
            },
        };
        Self {
            query: cast(&self.query),
            positive: cast(&self.positive),
            negatives,
        }
    }
}

pub(crate) const KINDS: [&str; 3] = ["paper", "nce", "infonce"];

pub(crate) fn loss(kind: &str, temperature: f64) -> Box<dyn ContrastiveLoss> {
    match kind {
        "paper" => Box::new(Paper::new(temperature).unwrap()),
        "nce" => Box::new(FirstBatchNce::new(temperature, DATASET_SIZE, Ops::Fast)),
        "infonce" => Box::new(InfoNce::new(temperature).unwrap()),
        other => panic!("no loss {other}"),
    }
}

/// NCE with the constant of the first batch it sees.
#[derive(Debug)]
pub(crate) struct FirstBatchNce {
    temperature: f64,
    dataset_size: usize,
    ops: Ops,
    first: OnceLock<Nce>,
}

impl FirstBatchNce {
    pub(crate) fn new(temperature: f64, dataset_size: usize, ops: Ops) -> Self {
        Self {
            temperature,
            dataset_size,
            ops,
            first: OnceLock::new(),
        }
    }

    pub(crate) fn estimated(&self, case: &Case) -> Result<Nce, LossError> {
        self.of(&case.query, &case.positive, &case.negatives)
    }

    fn of(&self, q: &Tensor, p: &Tensor, negatives: &Negatives) -> Result<Nce, LossError> {
        if let Some(nce) = self.first.get() {
            return Ok(*nce);
        }
        let (tau, images) = (self.temperature, self.dataset_size);
        let nce = Nce::estimated(tau, images, q, p, negatives, self.ops)?;
        Ok(*self.first.get_or_init(|| nce))
    }
}

impl ContrastiveLoss for FirstBatchNce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let nce = self.of(query, positive, negatives)?;
        nce.forward(query, positive, negatives)
    }
}

/// Loss and gradient by the public interface.
pub(crate) fn evaluate(
    loss: &dyn ContrastiveLoss,
    case: &Case,
) -> Result<(f64, Vec<f64>), LossError> {
    let query = Var::from_tensor(&case.query)?;
    let value = loss.forward(&query, &case.positive, &case.negatives)?;
    let gradients = value.backward()?;
    Ok((scalar(&value), values(gradients.get(&query).unwrap())))
}

/// Loss and gradient by the reference, in double precision.
pub(crate) fn evaluate_reference(kind: &str, temperature: f64, case: &Case) -> (f64, Vec<f64>) {
    let Case {
        query,
        positive,
        negatives,
    } = case.f64();
    let query = Var::from_tensor(&query).unwrap();
    let value = match kind {
        "paper" => reference::paper(&query, &positive, &negatives, temperature),
        "infonce" => reference::info_nce(&query, &positive, &negatives, temperature),
        _ => {
            let mean = reference::log_mean_exp(&query, &positive, &negatives, temperature).unwrap();
            let log_z = (DATASET_SIZE as f64).ln() + mean;
            reference::nce(
                &query,
                &positive,
                &negatives,
                temperature,
                DATASET_SIZE,
                log_z,
            )
        }
    };
    let value = value.unwrap();
    let gradients = value.backward().unwrap();
    (scalar(&value), values(gradients.get(&query).unwrap()))
}

pub(crate) fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

pub(crate) fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub(crate) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Length of the difference over the length of `want`.
pub(crate) fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: Vec<f64> = got.iter().zip(want).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(want)
}
