//! The CUDA kernels, run on a CPU, against the reference in double precision.
#![cfg(all(target_os = "linux", target_env = "gnu"))] // what the shim needs

mod common;

use benches::{Buffer, Dim3, Kernels, fill};
use common::{Case, DATASET_SIZE, KINDS, evaluate_reference, norm, values};
use pirl_loss::{Negatives, reference};

type F = *mut f32;
type Rows = unsafe extern "C" fn(i32, F, F, F, *mut i32, i32, i32, f64, f64, f64, *mut f64, F);
type Scores = unsafe extern "C" fn(F, F, *mut u32, i32, i32, F);
type Sums = unsafe extern "C" fn(F, F, *mut u32, i32, i32, F);

/// Threads of a block of `contrastive_rows`, and of the two kernels on indexed rows.
const ROW_BLOCK: Dim3 = (256, 1, 1);
const INDEXED_BLOCK: Dim3 = (32, 8, 1);

fn kernels() -> Kernels {
    Kernels::compile::<f32>(concat!(env!("CARGO_MANIFEST_DIR"), "/src/rows.cu"))
}

fn numbers(x: &candle_core::Tensor) -> Vec<f32> {
    values(x).into_iter().map(|x| x as f32).collect()
}

/// Loss and gradient of a case by the kernels; `kind` 3 gives each image's log sum instead.
fn by_kernels(
    kernels: &Kernels,
    kind: i32,
    temperature: f64,
    log_z: f64,
    case: &Case,
) -> (Vec<f64>, Vec<f64>) {
    let (b, dim) = case.query.dims2().unwrap();
    let (rows, own, indices) = match &case.negatives {
        Negatives::Shared { rows, own } => (numbers(rows), own.clone(), None),
        Negatives::PerImage { bank, indices } => (numbers(bank), vec![None; b], Some(indices)),
    };
    let n = indices.map_or(rows.len() / dim, |indices| indices.len() / b);
    let (query, positive) = (numbers(&case.query), numbers(&case.positive));
    let row = |index: usize| &rows[index * dim..][..dim];
    let at = |image: usize, k: usize| indices.map_or(k, |indices| indices[image * n + k] as usize);

    let (q, p, bank) = (
        Buffer::new(&query),
        Buffer::new(&positive),
        Buffer::new(&rows),
    );
    let (images, negatives, d) = (b as u32, n as i32, dim as i32);
    let scores = Buffer::<f32>::unset(b * n);
    let named = indices.map(|indices| Buffer::new(indices));
    match &named {
        Some(indices) => {
            let indexed = kernels.get::<Scores>("indexed_scores");
            // SAFETY: the buffers have the sizes that the kernel is told, and each index has a row.
            kernels.launch((images, 2, 1), INDEXED_BLOCK, || unsafe {
                indexed(
                    q.pointer(),
                    bank.pointer(),
                    indices.pointer(),
                    negatives,
                    d,
                    scores.pointer(),
                );
            });
        }
        // On a GPU a product of matrices.
        None => {
            let products: Vec<f32> = (0..b * n)
                .map(|i| {
                    query[i / n * dim..][..dim]
                        .iter()
                        .zip(row(i % n))
                        .map(|(a, b)| a * b)
                        .sum()
                })
                .collect();
            // SAFETY: both have `b * n` numbers.
            unsafe { std::ptr::copy_nonoverlapping(products.as_ptr(), scores.pointer(), b * n) };
        }
    }
    let masked: Vec<i32> = own
        .iter()
        .map(|own| own.map_or(-1, |column| column as i32))
        .collect();
    let masked = Buffer::new(&masked);
    let (losses, pulls) = (Buffer::<f64>::unset(b), Buffer::<f32>::unset(b));
    let contrastive = kernels.get::<Rows>("contrastive_rows");
    // SAFETY: the buffers have the sizes that the kernel is told.
    kernels.launch((images, 1, 1), ROW_BLOCK, || unsafe {
        let own = if named.is_some() {
            std::ptr::null_mut()
        } else {
            masked.pointer()
        };
        contrastive(
            kind,
            scores.pointer(),
            q.pointer(),
            p.pointer(),
            own,
            negatives,
            d,
            1.0 / temperature,
            log_z,
            DATASET_SIZE as f64,
            losses.pointer(),
            pulls.pointer(),
        );
    });
    let coefficients = scores.values();
    let sums: Vec<f64> = match &named {
        Some(indices) => {
            let splits = 3;
            let sums = Buffer::<f32>::unset(splits * b * dim);
            let indexed = kernels.get::<Sums>("indexed_sums");
            // SAFETY: as above.
            kernels.launch((images, splits as u32, 1), INDEXED_BLOCK, || unsafe {
                indexed(
                    scores.pointer(),
                    bank.pointer(),
                    indices.pointer(),
                    negatives,
                    d,
                    sums.pointer(),
                );
            });
            let sums = sums.values();
            (0..b * dim)
                .map(|i| (0..splits).map(|s| f64::from(sums[s * b * dim + i])).sum())
                .collect()
        }
        None => (0..b * dim)
            .map(|i| {
                let (image, j) = (i / dim, i % dim);
                (0..n)
                    .map(|k| {
                        f64::from(coefficients[image * n + k]) * f64::from(row(at(image, k))[j])
                    })
                    .sum()
            })
            .collect(),
    };
    let pulls = pulls.values();
    let gradient = sums.iter().enumerate().map(|(i, sum)| {
        let pull = f64::from(pulls[i / dim]) * f64::from(positive[i]);
        (sum + pull) / (b as f64 * temperature)
    });
    (losses.values(), gradient.collect())
}

fn cases() -> Vec<(&'static str, Case)> {
    let drawn = |b: usize, n: usize, m: u32| {
        fill(9, b * n)
            .iter()
            .map(|x| ((x + 1.0) / 2.0 * m as f32) as u32 % m)
            .collect::<Vec<u32>>()
    };
    vec![
        ("one image and negative", Case::shared(1, 1, 3, vec![None])),
        (
            "own column first",
            Case::shared(2, 5, 7, vec![Some(0), Some(4)]),
        ),
        (
            "a thread with two columns",
            Case::shared(3, 257, 128, vec![None, Some(256), Some(17)]),
        ),
        (
            "many negatives",
            Case::shared(2, 5003, 33, vec![Some(3), None]),
        ),
        ("per image", Case::per_image(2, 50, 128, drawn(2, 300, 50))),
        (
            "per image, odd sizes",
            Case::per_image(3, 11, 37, drawn(3, 7, 11)),
        ),
        ("per image, one of each", Case::per_image(1, 1, 1, vec![0])),
    ]
}

#[test]
fn losses_and_gradients_equal_the_reference() {
    let kernels = kernels();
    for (what, case) in cases() {
        for temperature in [0.07, 0.01] {
            let log_mean = {
                let Case {
                    query,
                    positive,
                    negatives,
                } = case.f64();
                reference::log_mean_exp(&query, &positive, &negatives, temperature).unwrap()
            };
            let log_z = (DATASET_SIZE as f64).ln() + log_mean;
            for (kind, name) in KINDS.into_iter().enumerate() {
                let (want, want_gradient) = evaluate_reference(name, temperature, &case);
                for falling in [false, true] {
                    kernels.set_falling(falling);
                    let (losses, gradient) =
                        by_kernels(&kernels, kind as i32, temperature, log_z, &case);
                    let got = losses.iter().sum::<f64>() / losses.len() as f64;
                    let error = (got - want).abs() / want.abs().max(1.0);
                    assert!(
                        error < 2e-6,
                        "{name}, {what}, {temperature}: {got}, not {want}"
                    );
                    // Scores in f32 of magnitude 1 / temperature have an error of 1e-7 of it, which
                    // exponentials pass on.
                    let difference = gradient.iter().zip(&want_gradient).map(|(g, w)| g - w);
                    let difference = norm(&difference.collect::<Vec<_>>());
                    // A lone negative leaves next to no gradient.
                    let error = difference / norm(&want_gradient).max(1e-3);
                    assert!(
                        error < 2e-6 / temperature,
                        "{name}, {what}, {temperature}: gradient off by {error}"
                    );
                    println!("{name}, {what}, {temperature}: gradient off by {error:.1e}");
                }
            }
            let (sums, _) = by_kernels(&kernels, 3, temperature, 0.0, &case);
            let max = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = max + sums.iter().map(|sum| (sum - max).exp()).sum::<f64>().ln();
            let counted: usize = match &case.negatives {
                Negatives::Shared { rows, own } => own
                    .iter()
                    .map(|own| 1 + rows.dim(0).unwrap() - usize::from(own.is_some()))
                    .sum(),
                Negatives::PerImage { indices, .. } => sums.len() + indices.len(),
            };
            let got = total - (counted as f64).ln();
            assert!(
                (got - log_mean).abs() < 1e-5 * log_mean.abs().max(1.0),
                "{what}: {got}, not {log_mean}"
            );
        }
    }
}

#[test]
fn a_nan_among_the_embeddings_makes_the_loss_nan() {
    let kernels = kernels();
    let mut case = Case::shared(2, 300, 5, vec![None, Some(2)]);
    let mut rows = common::unit(3, 300, 5);
    rows[7 * 5] = f32::NAN;
    case.negatives = Negatives::Shared {
        rows: common::tensor(&rows, 5),
        own: vec![None, Some(7)],
    };
    for kind in 0..3 {
        let (losses, _) = by_kernels(&kernels, kind, 0.07, 1.0, &case);
        assert!(losses[0].is_nan(), "kind {kind}");
        assert!(
            losses[1].is_finite(),
            "kind {kind}: a masked column counts for nothing"
        );
    }
}
