//! A probe of one's own beside the standard ones: each image goes to the nearest mean of a class.
//!
//!     cargo run --release -p pirl-eval --example own_probe -- BACKBONE TRAIN TEST
//!
//! BACKBONE is a file that `pirl export` or PyTorch wrote; TRAIN and TEST are folders of images with a
//! sub-folder for each class.
use std::{error::Error, path::Path};

use candle_core::Device;
use pirl_data::{DataConfig, EvalView, ImageFolder, Pack, PackOptions, pack};
use pirl_eval::*;
use pirl_model::{ResNet, Trainable, read_backbone};

/// Nearest class mean, on the last layer of the set.
struct ClassMeans;

impl Probe for ClassMeans {
    type Report = f64; // top-1, percent

    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        _progress: &mut dyn FnMut(usize, usize),
    ) -> Result<f64> {
        let last = |set: &FeatureSet| set.layers().last().cloned();
        let (Some(known), Some(asked)) = (last(train), last(test)) else { return Ok(0.0) };
        let dim = known.dim();
        let mut means = vec![vec![0f32; dim]; train.class_names().len()];
        for (row, label) in known.values().chunks(dim).zip(train.labels()) {
            let mean = &mut means[label.unwrap_or(0) as usize];
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            dot(a, b) / dot(b, b).sqrt().max(1e-12)
        };
        let nearest = |row: &[f32]| {
            let scores = means.iter().map(|mean| cosine(row, mean)).enumerate();
            scores.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(label, _)| label as u32)
        };
        let rows = asked.values().chunks(dim).zip(test.labels());
        let correct = rows.filter(|(row, label)| nearest(row) == **label).count();
        Ok(100.0 * correct as f64 / asked.rows() as f64)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, train, test] = &arguments[..] else {
        return Err("usage: own_probe BACKBONE TRAIN TEST".into());
    };
    let weights = read_backbone(Path::new(backbone))?;
    let network = ResNet::new(&weights.config, 0, &Device::Cpu)?;
    network.load(&weights.state)?.ensure_whole()?;

    let DataConfig { mean, std, .. } = DataConfig::default();
    let view = EvalView { resize: 64, crop: 64, stretch: false, mean, std };
    let work = tempfile::tempdir()?;
    let features = |folder: &str, name: &str| -> std::result::Result<FeatureSet, Box<dyn Error>> {
        let packed = work.path().join(name);
        let source = ImageFolder::open(Path::new(folder))?;
        pack(&source, &packed, &PackOptions::default(), &mut |_, _| {})?;
        let pack = Pack::open(&packed)?;
        Ok(extract_features(&network, &pack, &Extraction::new(view.clone()), &mut |_, _| {})?)
    };
    let (train, test) = (features(train, "train")?, features(test, "test")?);

    let quiet = &mut |_, _| {};
    println!("class means {:.1}", ClassMeans.evaluate(&train, &test, quiet)?);
    let knn = Knn::new(KnnConfig { k: vec![5], ..KnnConfig::default() }, 0)?;
    println!("nearest neighbours {:.1}", knn.evaluate(&train, &test, quiet)?.best.top1);
    let linear = LinearConfig { batch_size: 16, ..LinearConfig::default() };
    let linear = LinearProbe::new(linear, 0)?;
    println!("linear {:.1}", linear.evaluate(&train, &test, quiet)?.best.top1);
    Ok(())
}
