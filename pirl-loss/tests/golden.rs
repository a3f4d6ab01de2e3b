//! The losses against PyTorch's autograd in double precision (`golden/make_losses.py`).

mod common;

use candle_core::{Device, Tensor, Var};
use common::{Case, KINDS, evaluate, evaluate_reference, loss, norm, relative, scalar, values};
use pirl_loss::cross_entropy;
use serde_json::Value;

const B: usize = 5;
const N: usize = 203;
const D: usize = 19;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/losses.json")).unwrap()
}

/// Compares a loss and a gradient with a golden entry: value, norm, and 64 entries.
fn compare(name: &str, entry: &Value, (value, gradient): (f64, Vec<f64>), tolerance: f64) {
    let number = |key: &str| entry[key].as_f64().unwrap();
    let error = (value / number("loss") - 1.0).abs();
    assert!(
        error < tolerance,
        "{name}: loss {value}, relative error {error}"
    );
    let error = (norm(&gradient) / number("norm") - 1.0).abs();
    assert!(
        error < tolerance,
        "{name}: norm of the gradient, relative error {error}"
    );
    let want = entry["sample"].as_array().unwrap();
    let want: Vec<f64> = want.iter().map(|x| x.as_f64().unwrap()).collect();
    let got: Vec<f64> = (0..64).map(|i| gradient[37 * i % gradient.len()]).collect();
    let error = relative(&got, &want);
    assert!(
        error < tolerance,
        "{name}: entries of the gradient, relative error {error}"
    );
}

fn case(sampling: &str) -> Case {
    if sampling == "shared" {
        let own = vec![None, Some(0), Some(7), Some(N as u32 - 1), None];
        return Case::shared(B, N, D, own);
    }
    let indices = (0..B).flat_map(|b| (0..N).map(move |n| ((b * 131 + n * 89 + 5) % 997) as u32));
    Case::per_image(B, 997, D, indices.collect())
}

#[test]
fn contrastive_losses_equal_pytorch() {
    let golden = golden();
    let entries = golden["contrastive"].as_array().unwrap();
    assert_eq!(entries.len(), KINDS.len() * 2 * 3);
    for entry in entries {
        let (kind, sampling) = (
            entry["kind"].as_str().unwrap(),
            entry["sampling"].as_str().unwrap(),
        );
        let temperature = entry["temperature"].as_f64().unwrap();
        let name = format!("{kind}, {sampling}, {temperature}");
        let case = case(sampling);
        let fused = evaluate(loss(kind, temperature).as_ref(), &case).unwrap();
        compare(&format!("fused {name}"), entry, fused, 1e-5);
        // 1e-8, not less: the inputs' last bit depends on the order of a sum.
        let reference = evaluate_reference(kind, temperature, &case);
        compare(&format!("reference {name}"), entry, reference, 1e-8);
    }
}

#[test]
fn cross_entropy_equals_pytorch() {
    let logits: Vec<f32> = benches::fill(4, 6 * 24).iter().map(|x| x * 5.0).collect();
    let logits = Var::from_vec(logits, (6, 24), &Device::Cpu).unwrap();
    let value = cross_entropy(&logits, &[0, 23, 5, 5, 11, 2]).unwrap();
    let gradients = value.backward().unwrap();
    let gradient = values(gradients.get(&logits).unwrap());
    compare(
        "covariant",
        &golden()["covariant"],
        (scalar(&value), gradient),
        1e-5,
    );
}

#[test]
fn cross_entropy_survives_extreme_logits() {
    let logits = Tensor::new(&[[1e30f32, -1e30, 0.0], [-500.0, 500.0, 0.0]], &Device::Cpu).unwrap();
    assert_eq!(scalar(&cross_entropy(&logits, &[0, 1]).unwrap()), 0.0);
    assert_eq!(scalar(&cross_entropy(&logits, &[0, 0]).unwrap()), 500.0);
}
