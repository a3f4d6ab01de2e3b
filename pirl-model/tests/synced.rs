//! Batch norm that is synced over the parts of a batch is that of the whole batch.

use std::ops::Range;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use candle_core::{Device, Tensor, Var};
use pirl_model::{
    Arch, Backbone, ClassifierHead, Head, Mode, ModelConfig, ModelError, Ops, Peers, ResNet, Stem,
    Trainable, Winograd,
};

const CPU: Device = Device::Cpu;

/// Where threads with a part each meet.
struct Meeting {
    barrier: Barrier,
    given: Mutex<Vec<Vec<f64>>>,
}

struct Place(usize, Arc<Meeting>);

impl Place {
    fn all(parts: usize) -> Vec<Arc<dyn Peers>> {
        let meeting = Arc::new(Meeting {
            barrier: Barrier::new(parts),
            given: Mutex::new(vec![Vec::new(); parts]),
        });
        let place = |at| Arc::new(Self(at, Arc::clone(&meeting))) as Arc<dyn Peers>;
        (0..parts).map(place).collect()
    }
}

impl Peers for Place {
    fn any(&self) -> bool {
        true
    }

    fn gather(
        &self,
        own: Vec<f64>,
    ) -> Result<Vec<Vec<f64>>, Box<dyn std::error::Error + Send + Sync>> {
        self.1.given.lock().unwrap()[self.0] = own;
        self.1.barrier.wait();
        let all = self.1.given.lock().unwrap().clone();
        self.1.barrier.wait();
        Ok(all)
    }
}

/// The output of a part, the gradients of a fixed weighting of it, and the running statistics.
struct Found {
    output: Vec<f32>,
    input: Vec<f32>,
    parameters: Vec<f32>,
    statistics: Vec<f32>,
}

fn flat(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(candle_core::DType::F32).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// A module's pass over `rows` of a batch of rows of the shape `shape`.
fn part(
    module: &dyn Trainable,
    forward: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
    shape: &[usize],
    rows: Range<usize>,
) -> Result<Found, ModelError> {
    let row: usize = shape.iter().product();
    let numbers = benches::fill(3, row * rows.end)[row * rows.start..].to_vec();
    let shape: Vec<usize> = [&[rows.len()], shape].concat();
    let x = Var::from_vec(numbers, shape, &CPU)?;
    let out = forward(&x)?;
    let (n, c) = out.dims2()?;
    let joined = rows.len() / n;
    let (start, end) = (rows.start / joined * c, rows.end / joined * c);
    let weights = benches::fill(4, end)[start..].to_vec();
    let weights = Tensor::from_vec(weights, (n, c), &CPU)?;
    let gradients = (&out * weights)?.sum_all()?.backward()?;
    let of = |x: &Tensor| flat(gradients.get(x).unwrap());
    let statistics = module.buffer_sets()[0].entries()?;
    Ok(Found {
        output: flat(&out),
        input: of(&x),
        parameters: of(module.parameter_sets()[0].var()),
        statistics: statistics.iter().flat_map(|(_, x)| flat(x)).collect(),
    })
}

/// The passes over the parts of a batch, a thread each.
fn parts<M: Trainable>(
    sizes: &[usize],
    synced: bool,
    module: impl Fn() -> M + Sync,
    pass: impl Fn(&M, Range<usize>) -> Result<Found, ModelError> + Sync,
) -> Vec<Result<Found, ModelError>> {
    let mut start = 0;
    thread::scope(|scope| {
        let (module, pass) = (&module, &pass);
        let threads = Place::all(sizes.len()).into_iter().zip(sizes);
        let threads = threads.map(|(place, &size)| {
            let rows = start..start + size;
            start += size;
            scope.spawn(move || {
                let module = module();
                if synced {
                    module.sync_batch_norm(place).unwrap();
                }
                pass(&module, rows)
            })
        });
        let threads: Vec<_> = threads.collect();
        let found = threads.into_iter().map(|thread| thread.join().unwrap());
        found.collect()
    })
}

/// How far `a` is from `b`, by the length of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    error / norm(&mut b.iter().map(|&b| f64::from(b)))
}

/// Parts of these sizes, synced, are the whole, and those that are not synced are not. Rounding reaches a
/// gradient through all layers, and takes up to a few ten thousandths of it.
fn are_the_whole<M: Trainable>(
    sizes: &[usize],
    module: impl Fn() -> M + Sync,
    pass: impl Fn(&M, Range<usize>) -> Result<Found, ModelError> + Sync,
) {
    let all = sizes.iter().sum();
    let whole = pass(&module(), 0..all).unwrap();
    let found = |synced| -> Vec<Found> {
        let found = parts(sizes, synced, &module, &pass).into_iter();
        found.map(Result::unwrap).collect()
    };
    let join = |found: &[Found], of: fn(&Found) -> &Vec<f32>| -> Vec<f32> {
        found.iter().flat_map(of).copied().collect()
    };
    let add = |found: &[Found]| -> Vec<f32> {
        let sum = |i: usize| found.iter().map(|part| part.parameters[i]).sum();
        (0..whole.parameters.len()).map(sum).collect()
    };
    let synced = found(true);
    let errors = [
        distance(&join(&synced, |found| &found.output), &whole.output),
        distance(&join(&synced, |found| &found.input), &whole.input),
        distance(&add(&synced), &whole.parameters),
        distance(&synced[0].statistics, &whole.statistics),
    ];
    assert!(errors.iter().all(|&error| error < 1e-3), "{errors:?}");
    // All parts have the same bits.
    for part in &synced {
        assert_eq!(part.statistics, synced[0].statistics);
    }
    let local = found(false);
    let error = distance(&join(&local, |found| &found.output), &whole.output);
    assert!(error > 1e-2, "{error}");
}

fn config(ops: Ops) -> ModelConfig {
    ModelConfig {
        arch: Arch::Resnet10,
        width: 0.25,
        stem: Stem::Small,
        ops,
        // Which way is faster depends on the size of a part, and rounding on the way.
        winograd: Winograd::Off,
        ..ModelConfig::default()
    }
}

#[test]
fn parts_of_unequal_size_are_the_whole() {
    for ops in [Ops::Fast, Ops::Reference] {
        let network = || ResNet::new(&config(ops), 7, &CPU).unwrap();
        are_the_whole(&[3, 2, 1], network, |network, rows| {
            let forward = |x: &Tensor| network.forward(x, Mode::Train);
            part(network, forward, &[3, 17, 15], rows)
        });
        // Batch norm of vectors, three of which are an image's.
        let head = || ClassifierHead::new(&config(ops), 20, 3, 5, 7, &CPU).unwrap();
        are_the_whole(&[6, 9], head, |head, rows| {
            part(head, |x| head.forward(x, Mode::Train), &[20], rows)
        });
    }
}

#[test]
fn a_part_of_a_single_value_has_the_statistics_of_all() {
    for ops in [Ops::Fast, Ops::Reference] {
        let network = || ResNet::new(&config(ops), 7, &CPU).unwrap();
        let pass = |network: &ResNet, rows| {
            let forward = |x: &Tensor| network.forward(x, Mode::Train);
            part(network, forward, &[3, 8, 8], rows)
        };
        let alone = pass(&network(), 0..1).err().unwrap();
        assert!(matches!(alone, ModelError::SingleValue { .. }), "{alone}");
        for found in parts(&[1, 1], true, network, pass) {
            let found = found.unwrap();
            assert!(
                found
                    .output
                    .iter()
                    .chain(&found.input)
                    .all(|x| x.is_finite())
            );
        }
    }
}

#[test]
fn evaluations_are_of_a_part_alone() {
    struct Never;
    impl Peers for Never {
        fn any(&self) -> bool {
            true
        }
        fn gather(
            &self,
            _: Vec<f64>,
        ) -> Result<Vec<Vec<f64>>, Box<dyn std::error::Error + Send + Sync>> {
            Err("nobody is there".into())
        }
    }
    for ops in [Ops::Fast, Ops::Reference] {
        let network = ResNet::new(&config(ops), 7, &CPU).unwrap();
        network.sync_batch_norm(Arc::new(Never)).unwrap();
        let images = Tensor::from_vec(benches::fill(1, 2 * 3 * 64), (2, 3, 8, 8), &CPU).unwrap();
        for mode in [Mode::Frozen, Mode::Eval, Mode::Calibrate] {
            network.forward(&images, mode).unwrap();
        }
        let error = network.forward(&images, Mode::Train).unwrap_err();
        assert_eq!(error.to_string(), "nobody is there");
    }
}
