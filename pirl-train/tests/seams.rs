//! Each open seam with something foreign plugged in: it trains.

mod seams {
    pub(crate) mod convnext;
    pub(crate) mod images;
}

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use pirl_bank::{BankError, Drawn, NegativeSampler};
use pirl_data::{DataError, Image, Pretext, transform::Scratch};
use pirl_loss::{ContrastiveLoss, LossError, Negatives};
use pirl_model::{BatchNorm, Head, Mode, ModelError, OptimConfig, ParamSet, Precision, Trainable};
use pirl_train::{
    Checkpoints, Identity, Learner, Objective, Pirl, PirlBuilder, Pretraining, PretrainingConfig,
    RunOptions, Training, resume, run,
};
use rand::{Rng, RngExt};
use seams::convnext::ConvNeXt;
use seams::images::{IMAGES, jigsaw, loader, resnet};

const DIM: usize = 16;

fn pirl(views: usize) -> PirlBuilder {
    Pirl::builder(IMAGES, views)
        .dim(DIM)
        .negatives(20)
        .loss(pirl_loss::InfoNce::new(0.2).unwrap())
}

fn config() -> PretrainingConfig {
    PretrainingConfig {
        epochs: 12,
        lr: 0.05,
        ..PretrainingConfig::default()
    }
}

fn optim() -> OptimConfig {
    OptimConfig {
        lr: 0.05,
        ..OptimConfig::default()
    }
}

/// Trains to the end, and sees the loss fall.
fn learns<O: Objective>(name: &str, mut training: Pretraining<O>) {
    let mut losses = Vec::new();
    while training.done() < training.steps() {
        losses.push(training.step().unwrap().loss);
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let quarter = losses.len() / 4;
    let (first, last) = (mean(&losses[..quarter]), mean(&losses[3 * quarter..]));
    assert!(last < first, "{name}: the loss went from {first} to {last}");
}

/// PIRL on our ResNet, with a pretext task.
fn pretraining(
    folder: &Path,
    objective: Pirl,
    pretext: Option<Arc<dyn Pretext>>,
) -> Pretraining<Pirl> {
    let learner = Learner::builder(resnet, objective).optimizer(&optim());
    let loader = loader(folder, pretext, 0);
    Pretraining::new(learner.build().unwrap(), loader, &config()).unwrap()
}

/// A ConvNeXt of `candle_nn`'s layers, on so many devices.
fn convnext(folder: &Path, devices: usize) -> Pretraining<Pirl> {
    let learner = Learner::builder(ConvNeXt::new, pirl(9).build().unwrap())
        .devices(&vec![Device::Cpu; devices])
        .optimizer(&optim());
    let loader = loader(folder, Some(jigsaw()), 4);
    Pretraining::new(learner.build().unwrap(), loader, &config()).unwrap()
}

#[test]
fn a_foreign_backbone_trains() {
    let folder = tempfile::tempdir().unwrap();
    learns("ConvNeXt", convnext(folder.path(), 1));
    let refused = Learner::builder(ConvNeXt::new, pirl(9).build().unwrap())
        .precision(Precision::Bf16)
        .build();
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("precision = bf16"), "{error}");
}

#[test]
fn a_foreign_backbone_trains_on_two_devices() {
    let folder = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (convnext(folder.path(), 1), convnext(folder.path(), 2));
    for step in 0..4 {
        let (one, two) = (one.step().unwrap().loss, two.step().unwrap().loss);
        let error = (one / two - 1.0).abs();
        assert!(error < 1e-4, "step {step}: {one} on one, {two} on two");
    }
}

#[test]
fn a_foreign_backbone_goes_on_from_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(
        folder.path().join("checkpoints"),
        1,
        Identity {
            images: IMAGES,
            fingerprint: "seams".to_owned(),
            seed: 0,
        },
    );
    let losses = |training: &mut Pretraining<Pirl>, steps: u64| -> Vec<f32> {
        let steps = training.done()..steps;
        steps.map(|_| training.step().unwrap().loss).collect()
    };
    let mut whole = convnext(folder.path(), 1);
    let expected = losses(&mut whole, 9);

    let mut first = convnext(folder.path(), 2);
    let _ = losses(&mut first, 1); // of another learner: nothing of it is in the second
    let mut first = convnext(folder.path(), 1);
    let early = losses(&mut first, 5);
    let save = |folder: &Path, state: &mut _| first.save(folder, state);
    let path = checkpoints.write(5, 0, save).unwrap();
    let saved = pirl_model::load_state_dict(&path.join("model.safetensors")).unwrap();
    assert!(saved.contains_key("stem.weight") && saved.contains_key("head.f.fc.weight"));

    let mut second = convnext(folder.path(), 1);
    assert_eq!(resume(&mut second, &checkpoints).unwrap(), Some(path));
    let late = losses(&mut second, 9);
    assert_eq!([early, late].concat(), expected);
}

#[test]
fn a_training_that_nobody_watches_runs_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut training = pretraining(folder.path(), pirl(9).build().unwrap(), Some(jigsaw()));
    let options = RunOptions {
        log_every: 10,
        checkpoint_every: 0,
    };
    let ended = run(&mut training, None, &options, &mut ()).unwrap();
    assert_eq!(training.done(), training.steps());
    assert!(!ended.interrupted && ended.checkpoint.is_none() && ended.loss.is_some());
}

/// Two views: the upper and the lower half of the image, mirrored at random.
struct Halves;

impl Pretext for Halves {
    fn views(&self) -> usize {
        2
    }

    fn view_size(&self) -> usize {
        8
    }

    fn labels(&self) -> usize {
        2
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        _: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        let mirrored = rng.random_bool(0.5);
        for (at, out) in out.iter_mut().enumerate() {
            let (view, channel, y, x) = (at / 192, at / 64 % 3, at / 8 % 8, at % 8);
            let column = (if mirrored { 7 - x } else { x }) * image.width / 8;
            let row = (8 * view + y) * image.height / 16;
            *out = image.pixel(column, row).unwrap_or_default()[channel];
        }
        Ok(u32::from(mirrored))
    }
}

#[test]
fn a_foreign_pretext_task_trains_pirl_and_the_covariant_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let objective = pirl(Halves.views()).build().unwrap();
    let halves: Arc<dyn Pretext> = Arc::new(Halves);
    learns(
        "halves",
        pretraining(folder.path(), objective, Some(Arc::clone(&halves))),
    );

    let objective =
        pirl_train::Covariant::new(Halves.views(), Halves.labels(), 0, Default::default());
    let learner = Learner::builder(resnet, objective).optimizer(&optim());
    let loader = loader(folder.path(), Some(halves), 0);
    let training = Pretraining::new(learner.build().unwrap(), loader, &config()).unwrap();
    learns("covariant halves", training);
}

/// The mean over an image's negatives of `max(0, margin - s_p + s_n)`.
#[derive(Debug)]
struct Margin(f64);

impl ContrastiveLoss for Margin {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let s_p = (query * positive)?.sum_keepdim(D::Minus1)?;
        // Masked scores are so low that they cost nothing.
        let s_n = negatives.scores(query)?;
        let costs = (s_n.broadcast_sub(&s_p)? + self.0)?.relu()?;
        Ok(costs.mean_all()?)
    }
}

#[test]
fn a_foreign_loss_trains() {
    let folder = tempfile::tempdir().unwrap();
    let objective = pirl(9).loss(Margin(0.5)).build().unwrap();
    learns(
        "margin",
        pretraining(folder.path(), objective, Some(jigsaw())),
    );
}

/// Of all rows, those whose number is nearest to the images' mean number: a draw without chance.
struct Nearby;

impl NegativeSampler for Nearby {
    fn draw(
        &self,
        rows: usize,
        batch: &[u32],
        count: usize,
        _: &mut dyn Rng,
    ) -> Result<Drawn, BankError> {
        let mean = batch.iter().sum::<u32>() / batch.len() as u32;
        let start = (mean as usize).saturating_sub(count / 2).min(rows - count) as u32;
        let column = |&image: &u32| (image >= start).then(|| image - start);
        let own = batch
            .iter()
            .map(|image| column(image).filter(|at| (*at as usize) < count));
        Ok(Drawn::Shared {
            own: own.collect(),
            indices: (start..start + count as u32).collect(),
        })
    }
}

#[test]
fn a_foreign_sampler_trains() {
    let folder = tempfile::tempdir().unwrap();
    let objective = pirl(9).sampler(Nearby).build().unwrap();
    learns(
        "nearby",
        pretraining(folder.path(), objective, Some(jigsaw())),
    );
}

/// The mean of an image's views, and a linear layer without a bias.
struct MeanHead {
    weight: ParamSet,
    views: usize,
}

impl MeanHead {
    fn new(features: usize, views: usize, device: &Device) -> Result<Self, ModelError> {
        let params: [(&str, &[usize], f64); 1] = [("weight", &[DIM, features], 0.1)];
        Ok(Self {
            weight: ParamSet::normal(views as u64, &params, device)?,
            views,
        })
    }
}

impl Trainable for MeanHead {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        vec![self.weight.clone()]
    }
}

impl Head for MeanHead {
    fn forward(&self, features: &Tensor, _: Mode) -> Result<Tensor, ModelError> {
        let (rows, c) = features.dims2()?;
        let mean = features
            .reshape((rows / self.views, self.views, c))?
            .mean(1)?;
        pirl_model::l2_normalize(&mean.matmul(&self.weight.tracked("weight")?.t()?)?)
    }
}

#[test]
fn a_foreign_backbone_that_knows_no_other_parts_is_not_synced() {
    let network = |device: &Device| ConvNeXt::new(device);
    let learner = Learner::builder(network, pirl(9).build().unwrap());
    let error = learner.batch_norm(BatchNorm::Synced).build().err().unwrap();
    let said = error.to_string();
    assert!(
        said.starts_with("batch_norm = synced: must be local"),
        "{said}"
    );
    assert!(said.contains("Trainable::sync_batch_norm"), "{said}");
}

#[test]
fn foreign_heads_train() {
    let folder = tempfile::tempdir().unwrap();
    let objective = pirl(9)
        .image_head(|features, device| MeanHead::new(features, 1, device))
        .transformed_head(|features, device| MeanHead::new(features, 9, device));
    let objective = objective.build().unwrap();
    learns(
        "mean heads",
        pretraining(folder.path(), objective, Some(jigsaw())),
    );
}
