//! Optimisers and schedules against PyTorch's.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use pirl_model::{
    Arch, Backbone, Head, Mode, ModelConfig, Ops, OptimConfig, OptimKind, Optimizer, ParamSet,
    ProjectionHead, ResNet, Schedule, ScheduleConfig, ScheduleKind, Stem,
};
use serde_json::Value;

const CPU: Device = Device::Cpu;

fn golden(table: &str, name: &str) -> Vec<f64> {
    let golden: Value = serde_json::from_str(include_str!("golden/optim.json")).unwrap();
    serde_json::from_value(golden[table][name].clone()).unwrap()
}

/// The linear layer of `make_optim.py`, and its optimiser.
fn layer(config: &OptimConfig, ops: Ops) -> (ProjectionHead, Optimizer) {
    let head = ProjectionHead::new(&ModelConfig::default(), 6, 4, 0, &CPU).unwrap();
    let set = |name: &str, seed, shape: &[usize]| {
        let values = benches::fill(seed, shape.iter().product());
        let value = Tensor::from_vec(values, shape, &CPU).unwrap();
        head.parameters().set(name, &value).unwrap();
    };
    set("fc.weight", 1, &[4, 6]);
    set("fc.bias", 2, &[4]);
    let optimizer = Optimizer::new(config, vec![head.parameters().clone()]).unwrap();
    let optimizer = optimizer.with_ops(ops);
    (head, optimizer)
}

fn step(head: &ProjectionHead, optimizer: &mut Optimizer, t: u32, lr: f64) {
    let gradient = [benches::fill(10 + 2 * t, 24), benches::fill(11 + 2 * t, 4)].concat();
    let gradient = Tensor::new(gradient, &CPU).unwrap();
    let var = head.parameters().var();
    let loss = (var.as_tensor() * gradient).unwrap().sum_all().unwrap();
    optimizer.accumulate(&loss.backward().unwrap()).unwrap();
    optimizer.step(lr).unwrap();
}

fn parameters(head: &ProjectionHead) -> Vec<f32> {
    head.parameters().var().to_vec1().unwrap()
}

#[test]
fn ten_steps_equal_pytorchs() {
    let base = OptimConfig {
        lr: 0.1,
        weight_decay: 0.01,
        trust_coefficient: 0.02,
        ..OptimConfig::default()
    };
    let cases = [
        (
            "plain",
            OptimConfig {
                momentum: 0.0,
                weight_decay: 0.0,
                ..base.clone()
            },
        ),
        ("momentum", base.clone()),
        (
            "decay_all",
            OptimConfig {
                exempt_norm_and_bias: false,
                ..base.clone()
            },
        ),
        (
            "nesterov",
            OptimConfig {
                nesterov: true,
                ..base.clone()
            },
        ),
        (
            "lars",
            OptimConfig {
                kind: OptimKind::Lars,
                ..base
            },
        ),
    ];
    for (name, config) in cases {
        for ops in [Ops::Fast, Ops::Reference] {
            let (head, mut optimizer) = layer(&config, ops);
            for t in 0..10 {
                step(&head, &mut optimizer, t, config.lr);
            }
            for (found, expected) in parameters(&head).iter().zip(golden("optim", name)) {
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-6,
                    "{name} {ops:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_loaded_state_continues_bit_for_bit() {
    for ops in [Ops::Fast, Ops::Reference] {
        continues_bit_for_bit(ops);
    }
}

fn continues_bit_for_bit(ops: Ops) {
    let config = OptimConfig::default();
    let (head, mut optimizer) = layer(&config, ops);
    for t in 0..10 {
        step(&head, &mut optimizer, t, 0.1);
    }
    let (resumed, mut first) = layer(&config, ops);
    for t in 0..5 {
        step(&resumed, &mut first, t, 0.1);
    }
    let second = Optimizer::new(&config, vec![resumed.parameters().clone()]).unwrap();
    let mut second = second.with_ops(ops);
    second.load_state(&first.state().unwrap()).unwrap();
    for t in 5..10 {
        step(&resumed, &mut second, t, 0.1);
    }
    assert_eq!(parameters(&resumed), parameters(&head));
}

#[test]
fn a_state_of_another_network_is_refused() {
    let (_, mut optimizer) = layer(&OptimConfig::default(), Ops::Fast);
    let error = optimizer
        .load_state(&HashMap::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("momentum.0"), "{error}");
    let other = HashMap::from([(
        "momentum.0".to_owned(),
        Tensor::new(&[0f32; 3], &CPU).unwrap(),
    )]);
    let error = optimizer.load_state(&other).unwrap_err().to_string();
    assert!(error.contains("[28]") && error.contains("[3]"), "{error}");
}

#[test]
fn schedules_equal_pytorchs() {
    let cosine = ScheduleConfig::default();
    let cases = [
        ("cosine", cosine.clone()),
        (
            "multi_step",
            ScheduleConfig {
                kind: ScheduleKind::MultiStep,
                milestones: vec![2, 4],
                ..cosine.clone()
            },
        ),
        (
            "warm_cosine",
            ScheduleConfig {
                warmup_epochs: 1.5,
                warmup_start: 0.25,
                ..cosine
            },
        ),
    ];
    for (name, config) in cases {
        let schedule = Schedule::new(&config, 0.12, 4, 5).unwrap();
        for (step, expected) in golden("schedule", name).into_iter().enumerate() {
            let found = schedule.lr(step);
            assert!(
                (found - expected).abs() < 1e-12,
                "{name}, step {step}: {found} {expected}"
            );
        }
    }
    let constant = ScheduleConfig {
        kind: ScheduleKind::Constant,
        ..ScheduleConfig::default()
    };
    assert_eq!(Schedule::new(&constant, 0.5, 4, 5).unwrap().lr(19), 0.5);
}

#[test]
fn settings_out_of_range_are_named() {
    let optim = OptimConfig {
        momentum: 1.5,
        ..OptimConfig::default()
    };
    let error = Optimizer::new(&optim, Vec::new())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("momentum = 1.5"), "{error}");
    let schedule = ScheduleConfig {
        warmup_epochs: 6.0,
        ..ScheduleConfig::default()
    };
    let error = Schedule::new(&schedule, 0.1, 4, 5).unwrap_err().to_string();
    assert!(
        error.contains("warmup_epochs = 6: must be at most 5"),
        "{error}"
    );
    let schedule = ScheduleConfig {
        milestones: vec![4, 2],
        ..ScheduleConfig::default()
    };
    assert!(Schedule::new(&schedule, 0.1, 4, 5).is_err());
}

#[test]
fn unscaled_gradients_take_the_step_of_plain_ones() {
    let config = OptimConfig::default();
    for ops in [Ops::Fast, Ops::Reference] {
        let (plain, mut plain_optimizer) = layer(&config, ops);
        let (scaled, mut scaled_optimizer) = layer(&config, ops);
        for t in 0..3 {
            step(&plain, &mut plain_optimizer, t, 0.1);
            let scale = 65_536.0;
            let gradient = [benches::fill(10 + 2 * t, 24), benches::fill(11 + 2 * t, 4)].concat();
            let gradient = Tensor::new(gradient, &CPU).unwrap();
            let var = scaled.parameters().var();
            let loss = (var.as_tensor() * gradient).unwrap().sum_all().unwrap();
            let gradients = (loss * scale).unwrap().backward().unwrap();
            scaled_optimizer.accumulate(&gradients).unwrap();
            assert!(scaled_optimizer.unscale(scale).unwrap());
            scaled_optimizer.step(0.1).unwrap();
            assert_eq!(parameters(&plain), parameters(&scaled));
        }
    }
}

#[test]
fn gradients_that_are_not_finite_are_found_and_forgotten() {
    let config = OptimConfig::default();
    for wrong in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let (head, mut optimizer) = layer(&config, Ops::Fast);
        let before = parameters(&head);
        let mut gradient = vec![1f32; 28];
        gradient[17] = wrong;
        let gradient = Tensor::new(gradient, &CPU).unwrap();
        let loss = (head.parameters().var().as_tensor() * gradient).unwrap();
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        optimizer.accumulate(&gradients).unwrap();
        assert!(!optimizer.unscale(2.0).unwrap());
        optimizer.step(0.1).unwrap();
        assert_eq!(parameters(&head), before);
        // Nothing of them is in the next step.
        let (fresh, mut fresh_optimizer) = layer(&config, Ops::Fast);
        step(&head, &mut optimizer, 1, 0.1);
        step(&fresh, &mut fresh_optimizer, 1, 0.1);
        assert_eq!(parameters(&head), parameters(&fresh));
    }
}

/// Twice through the modules in one loss, and a term that Candle alone differentiates.
#[test]
fn a_backward_pass_has_the_gradients_of_candles() {
    for ops in [Ops::Fast, Ops::Reference] {
        let config = ModelConfig {
            arch: Arch::Resnet18,
            width: 0.25,
            stem: Stem::Small,
            ops,
            ..ModelConfig::default()
        };
        let backbone = ResNet::new(&config, 3, &CPU).unwrap();
        let head = ProjectionHead::new(&config, backbone.feature_dim(), 5, 4, &CPU).unwrap();
        let unused = ParamSet::normal(5, &[("w", &[2, 2], 1.0)], &CPU).unwrap();
        let sets = vec![
            backbone.parameters().clone(),
            head.parameters().clone(),
            unused,
        ];
        let images = |seed| Tensor::from_vec(benches::fill(seed, 2 * 3 * 64), (2, 3, 8, 8), &CPU);
        let loss = || {
            let embed = |seed| {
                let features = backbone.forward(&images(seed).unwrap(), Mode::Train);
                head.forward(&features.unwrap(), Mode::Train).unwrap()
            };
            let product = (embed(1) * embed(2)).unwrap().sum_all().unwrap();
            let var = head.parameters().var();
            (product + var.sqr().unwrap().sum_all().unwrap()).unwrap()
        };
        let gradients = |optimizer: &mut Optimizer| -> Vec<Option<Vec<f32>>> {
            let taken = optimizer.take_gradients().into_iter();
            taken
                .map(|gradient| gradient.map(|x| x.to_vec1().unwrap()))
                .collect()
        };
        let mut optimizer = Optimizer::new(&OptimConfig::default(), sets).unwrap();
        for passes in [1, 2] {
            for _ in 0..passes {
                optimizer.backward(&loss()).unwrap();
            }
            let own = gradients(&mut optimizer);
            for _ in 0..passes {
                // Nobody collects what Candle is to return.
                optimizer.accumulate(&loss().backward().unwrap()).unwrap();
            }
            let candles = gradients(&mut optimizer);
            for (set, (own, candles)) in own.iter().zip(&candles).enumerate() {
                let what = format!("{ops:?}, set {set}, {passes} passes");
                assert_eq!(own.is_some(), candles.is_some(), "{what}");
                assert_eq!(own.is_some(), set < 2, "{what}");
                let (own, candles) = (own.iter().flatten(), candles.iter().flatten());
                for (a, b) in own.zip(candles) {
                    // Sums of three terms, in another order.
                    assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: {a}, {b}");
                }
            }
        }
        assert!(
            loss()
                .backward()
                .unwrap()
                .get(backbone.parameters().var())
                .is_some()
        );
    }
}
