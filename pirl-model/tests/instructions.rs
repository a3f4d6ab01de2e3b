//! Whatever instruction set the processor has, plain loops give the same bits and products the same to rounding.

use candle_core::{Device, Tensor};
use pirl_core::Instructions;
use pirl_model::{Mode, ModelConfig, Ops, OptimConfig, Optimizer, ProjectionHead, SingleOp};

type Numbers = Vec<(&'static str, Vec<f32>)>;

fn run(op: SingleOp, set: Instructions) -> Numbers {
    set.use_at_most();
    op.run(&[3, 21, 7, 9], Mode::Train, Ops::Fast, &Device::Cpu)
        .unwrap()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Three steps of an optimiser with gradients that are what they are: the parameters.
fn trained(config: &OptimConfig, set: Instructions) -> Vec<f32> {
    set.use_at_most();
    let head = ProjectionHead::new(&ModelConfig::default(), 37, 11, 0, &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(config, vec![head.parameters().clone()]).unwrap();
    let parameters = head.parameters().var().as_tensor();
    let slopes = benches::fill(3, parameters.elem_count());
    let slopes = Tensor::from_vec(slopes, parameters.dims(), &Device::Cpu).unwrap();
    for _ in 0..3 {
        let loss = (parameters * &slopes).unwrap().sum_all().unwrap();
        optimizer.accumulate(&loss.backward().unwrap()).unwrap();
        optimizer.step(0.1).unwrap();
    }
    parameters.flatten_all().unwrap().to_vec1().unwrap()
}

// One test: the set in use is that of the whole process.
#[test]
fn results_are_the_same_by_every_instruction_set() {
    let mut plain = vec![SingleOp::MaxPool, SingleOp::AveragePool, SingleOp::Relu];
    for (residual, relu) in [(false, false), (false, true), (true, false), (true, true)] {
        plain.push(SingleOp::BatchNorm { residual, relu });
    }
    let conv = |kernel, stride| SingleOp::ConvNorm {
        channels: 35,
        kernel,
        stride,
        relu: true,
    };
    for set in Instructions::ALL {
        for op in &plain {
            let expected = run(*op, Instructions::Baseline);
            for ((name, found), (_, expected)) in run(*op, set).iter().zip(&expected) {
                assert!(bits(found) == bits(expected), "{set}: {op:?}, {name}");
            }
        }
        for op in [conv(3, 1), conv(3, 2), conv(1, 1), conv(7, 2)] {
            let expected = run(op, Instructions::Baseline);
            for ((name, found), (_, expected)) in run(op, set).iter().zip(&expected) {
                let size = expected.iter().fold(0f32, |size, x| size.max(x.abs()));
                let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
                let far = far.fold(0f32, f32::max);
                assert!(far <= 1e-5 * size, "{set}: {op:?}, {name}: {far} of {size}");
            }
        }
        for nesterov in [false, true] {
            let config = OptimConfig {
                nesterov,
                ..OptimConfig::default()
            };
            let expected = trained(&config, Instructions::Baseline);
            let found = trained(&config, set);
            assert!(bits(&found) == bits(&expected), "{set}: SGD");
        }
    }
}
