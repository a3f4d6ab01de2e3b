//! The probes on 60,000 training images, as in the quickstart; 2,000 test images.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pirl_eval::{FeatureSet, Knn, KnnConfig, LayerFeatures, LinearConfig, LinearProbe, Probe};
use pirl_model::Layer;

const TRAIN: usize = 60_000;
const TEST: usize = 2_000;
const CLASSES: u32 = 10;

fn features(seed: u32, rows: usize, dim: usize) -> FeatureSet {
    let layer =
        LayerFeatures::new(Layer::RES5, rows, dim, benches::fill(seed, rows * dim)).unwrap();
    let labels = (0..rows as u32).map(|row| Some(row % CLASSES)).collect();
    let names = (0..CLASSES).map(|class| class.to_string()).collect();
    FeatureSet::new(vec![layer], labels, names).unwrap()
}

fn probes(c: &mut Criterion) {
    let mut group = c.benchmark_group("eval");
    group.sample_size(10);
    for dim in [128, 512] {
        let (train, test) = (features(1, TRAIN, dim), features(2, TEST, dim));
        group.throughput(Throughput::Elements(TRAIN as u64));
        let config = LinearConfig {
            epochs: 1,
            lrs: vec![0.01, 0.03, 0.1],
            ..Default::default()
        };
        let linear = LinearProbe::new(config, 0).unwrap();
        group.bench_function(
            format!("linear, one epoch, three rates, {dim} features"),
            |b| {
                b.iter(|| linear.evaluate(&train, &test, &mut |_, _| {}).unwrap());
            },
        );
        group.throughput(Throughput::Elements(TEST as u64));
        let config = KnnConfig {
            k: vec![200],
            ..Default::default()
        };
        let knn = Knn::new(config, 0).unwrap();
        group.bench_function(format!("k-NN, {dim} features"), |b| {
            b.iter(|| knn.evaluate(&train, &test, &mut |_, _| {}).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, probes);
criterion_main!(benches);
