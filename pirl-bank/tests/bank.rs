//! The rows: how they start, are read and change.

use candle_core::{DType, Device, Tensor, Var};
use pirl_bank::{BankError, MemoryBank};
use pirl_core::Ops;
use proptest::prelude::*;

fn matrix(bank: &MemoryBank) -> Vec<Vec<f32>> {
    bank.rows().to_vec2().unwrap()
}

fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt()
}

fn unit_rows(seed: u64, rows: usize, dim: usize) -> Tensor {
    MemoryBank::random(rows, dim, 0.5, seed, &Device::Cpu)
        .unwrap()
        .rows()
        .clone()
}

#[test]
fn random_rows_are_unit_and_spread_over_the_sphere() {
    // More rows than one stream of the generator makes.
    let (rows, dim) = (10_000, 16);
    let bank = MemoryBank::random(rows, dim, 0.5, 3, &Device::Cpu).unwrap();
    assert_eq!((bank.len(), bank.dim(), bank.momentum()), (rows, dim, 0.5));
    let values = matrix(&bank);
    assert!(values.iter().all(|row| (norm(row) - 1.0).abs() < 1e-6));
    for d in 0..dim {
        // Each coordinate has mean 0 and variance 1/dim; the bounds are five standard errors.
        let mean = values.iter().map(|row| f64::from(row[d])).sum::<f64>() / rows as f64;
        assert!(
            mean.abs() < 5.0 / (dim as f64 * rows as f64).sqrt(),
            "coordinate {d}: {mean}"
        );
        let square = values
            .iter()
            .map(|row| f64::from(row[d]).powi(2))
            .sum::<f64>();
        let variance = square / rows as f64 * dim as f64;
        assert!((variance - 1.0).abs() < 0.06, "coordinate {d}: {variance}");
    }
    // The second stream is not the first again.
    assert_ne!(values[0], values[4096]);
}

#[test]
fn random_rows_depend_on_the_seed_alone() {
    let rows = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| matrix(&MemoryBank::random(9000, 4, 0.5, seed, &Device::Cpu).unwrap()))
    };
    assert_eq!(rows(7, 1), rows(7, 3));
    assert_ne!(rows(7, 1), rows(8, 1));
}

#[test]
fn candles_own_ops_give_the_same_bits() {
    let banks = || {
        [Ops::Fast, Ops::Reference].map(|ops| {
            MemoryBank::from_rows(unit_rows(4, 40, 6), 0.5)
                .unwrap()
                .with_ops(ops)
        })
    };
    let [mut fast, mut plain] = banks();
    let indices: Vec<u32> = (0..300).map(|i| i * 7 % 40).collect();
    let gathered = |bank: &MemoryBank| bank.gather(&indices).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(gathered(&fast), gathered(&plain));
    for bank in [&mut fast, &mut plain] {
        bank.update(&[39, 0, 7], &unit_rows(5, 3, 6)).unwrap();
    }
    assert_eq!(matrix(&fast), matrix(&plain));
    assert_ne!(matrix(&fast), matrix(&banks()[0]));
}

#[test]
fn from_rows_copies() {
    let given = Var::from_tensor(&unit_rows(1, 5, 3)).unwrap();
    let before = given.to_vec2::<f32>().unwrap();
    let mut bank = MemoryBank::from_rows(given.as_tensor().clone(), 0.5).unwrap();
    bank.update(&[2], &unit_rows(2, 1, 3)).unwrap();
    assert_eq!(given.to_vec2::<f32>().unwrap(), before);
    assert_ne!(matrix(&bank)[2], before[2]);

    // A strided view is as good as any.
    let strided = unit_rows(1, 5, 3)
        .t()
        .unwrap()
        .contiguous()
        .unwrap()
        .t()
        .unwrap();
    assert_eq!(
        matrix(&MemoryBank::from_rows(strided, 0.5).unwrap()),
        before
    );
}

#[test]
fn gather_copies_the_rows_in_order() {
    let bank = MemoryBank::random(50, 6, 0.5, 3, &Device::Cpu).unwrap();
    let rows = matrix(&bank);
    let gathered = bank
        .gather(&[49, 0, 7, 7])
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let want = [&rows[49], &rows[0], &rows[7], &rows[7]].map(Vec::clone);
    assert_eq!(gathered, want);
    assert_eq!(bank.gather(&[]).unwrap().dims(), [0, 6]);
}

proptest! {
    #[test]
    fn update_is_the_formula_on_its_rows_and_nothing_elsewhere(
        rows in 1usize..60, dim in 2usize..20, momentum in 0.0f64..=1.0, seed in any::<u64>(),
    ) {
        let mut bank = MemoryBank::random(rows, dim, momentum, seed, &Device::Cpu).unwrap();
        let seen = bank.rows().clone();
        let before = matrix(&bank);
        let indices: Vec<u32> = (0..rows as u32).rev().step_by(3).collect();
        let new = unit_rows(!seed, indices.len(), dim);
        bank.update(&indices, &new).unwrap();
        let (after, new) = (matrix(&bank), new.to_vec2::<f32>().unwrap());
        for (row, (old, got)) in before.iter().zip(&after).enumerate() {
            let Some(position) = indices.iter().position(|&i| i as usize == row) else {
                prop_assert_eq!(old, got);
                continue;
            };
            let sum: Vec<f64> = old.iter().zip(&new[position])
                .map(|(&m, &v)| momentum * f64::from(m) + (1.0 - momentum) * f64::from(v))
                .collect();
            let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (got, want) in got.iter().zip(&sum) {
                prop_assert!((f64::from(*got) - want / length).abs() < 1e-5 / length.min(1.0));
            }
        }
        // The documented sharing: no row was moved to new storage.
        prop_assert_eq!(seen.to_vec2::<f32>().unwrap(), after);
    }
}

#[test]
fn update_ignores_gradient_history() {
    let mut bank = MemoryBank::random(4, 3, 0.5, 3, &Device::Cpu).unwrap();
    let embedding = Var::from_tensor(&unit_rows(4, 2, 3)).unwrap();
    bank.update(&[0, 2], &(embedding.as_tensor() * 2.0).unwrap())
        .unwrap();
    assert!(!bank.rows().track_op());
    assert!(
        matrix(&bank)
            .iter()
            .all(|row| (norm(row) - 1.0).abs() < 1e-6)
    );
}

#[test]
fn opposite_embedding_leaves_the_row() {
    let mut bank = MemoryBank::random(3, 8, 0.5, 3, &Device::Cpu).unwrap();
    let before = matrix(&bank);
    let opposite = bank.gather(&[1]).unwrap().neg().unwrap();
    let embeddings = Tensor::cat(&[opposite, unit_rows(9, 1, 8)], 0).unwrap();
    bank.update(&[1, 2], &embeddings).unwrap();
    let after = matrix(&bank);
    assert_eq!(after[1], before[1]);
    assert_ne!(after[2], before[2]);
    assert!((norm(&after[2]) - 1.0).abs() < 1e-6);
}

#[test]
fn bad_arguments_are_errors_and_leave_the_bank() {
    for momentum in [-0.1, 1.1, f64::NAN] {
        let error = MemoryBank::random(3, 2, momentum, 0, &Device::Cpu).unwrap_err();
        assert!(matches!(error, BankError::Setting(error) if error.field == "momentum"));
    }
    for (rows, dim) in [
        (0, 4),
        (4, 0),
        (u32::MAX as usize + 1, 1),
        (3, usize::MAX / 2),
    ] {
        let error = MemoryBank::random(rows, dim, 0.5, 0, &Device::Cpu).unwrap_err();
        assert!(matches!(error, BankError::Size { .. }), "{error}");
    }

    let not_unit = (unit_rows(1, 3, 4) * 1.1).unwrap();
    let error = MemoryBank::from_rows(not_unit, 0.5).unwrap_err();
    assert!(
        matches!(error, BankError::NotUnit { row: 0, .. }),
        "{error}"
    );
    let flat = unit_rows(1, 3, 4).flatten_all().unwrap();
    let error = MemoryBank::from_rows(flat, 0.5).unwrap_err();
    assert!(matches!(error, BankError::Tensor { .. }), "{error}");
    let double = unit_rows(1, 3, 4).to_dtype(DType::F64).unwrap();
    let error = MemoryBank::from_rows(double, 0.5).unwrap_err();
    assert!(error.to_string().contains("found [3, 4] of f64"), "{error}");

    let mut bank = MemoryBank::random(5, 4, 0.5, 3, &Device::Cpu).unwrap();
    let before = matrix(&bank);
    let nan = (unit_rows(1, 2, 4) * f64::NAN).unwrap();
    for (indices, embeddings, message) in [
        (
            &[0, 5][..],
            unit_rows(1, 2, 4),
            "index 5 is outside the bank of 5 rows",
        ),
        (&[3, 3], unit_rows(1, 2, 4), "index 3 is twice"),
        (
            &[0, 1],
            unit_rows(1, 3, 4),
            "expected (2, 4) of f32, found [3, 4] of f32",
        ),
        (
            &[0, 1],
            unit_rows(1, 2, 3),
            "expected (2, 4) of f32, found [2, 3] of f32",
        ),
        (&[0, 1], nan, "embedding of image 0 is not finite"),
    ] {
        let error = bank.update(indices, &embeddings).unwrap_err().to_string();
        assert!(
            error.contains(message),
            "{error:?} does not say {message:?}"
        );
    }
    assert!(matches!(
        bank.gather(&[5]),
        Err(BankError::Index { index: 5, rows: 5 })
    ));
    assert_eq!(matrix(&bank), before);
}
