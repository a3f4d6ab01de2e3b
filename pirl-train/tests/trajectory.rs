//! Twenty training steps beside PyTorch's: same weights, same batches, same losses.
//!
//! `benches/peers/trajectory.py` made the golden file.

mod common;

use common::{LR, backbone, batch, objective};
use pirl_model::{Ops, OptimConfig};
use pirl_train::Learner;

fn follows_pytorch(ops: Ops) {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("golden/trajectory.json")).unwrap();
    let golden = golden["losses"].as_array().unwrap();
    assert_eq!(golden.len(), 20);
    let optim = OptimConfig {
        lr: LR,
        ..OptimConfig::default()
    };
    let network = move |device: &_| backbone(ops, device);
    let learner = Learner::builder(network, objective(ops).build().unwrap());
    let mut learner = learner.optimizer(&optim).ops(ops).build().unwrap();
    for (step, expected) in golden.iter().enumerate() {
        let losses = learner
            .step([Ok(batch(step))], step as u64 + 1, LR)
            .unwrap();
        let (found, expected) = (f64::from(losses.total), expected.as_f64().unwrap());
        assert!(
            (found / expected - 1.0).abs() < 1e-3,
            "step {step}: {found}, PyTorch {expected}"
        );
    }
}

#[test]
fn fast_ops_follow_pytorch() {
    follows_pytorch(Ops::Fast);
}

#[test]
fn reference_ops_follow_pytorch() {
    follows_pytorch(Ops::Reference);
}
