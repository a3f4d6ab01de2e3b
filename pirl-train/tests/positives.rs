//! What each view is drawn to: the bank's row, the other view of the same step, or both.

mod common;

use candle_core::{Device, Tensor};
use common::{BATCH, NEGATIVES, ROWS, VIEWS, backbone, batch, objective};
use pirl_loss::InfoNce;
use pirl_model::{Backbone, Head, Mode, ModelError, Ops, ParamSet, Trainable, l2_normalize};
use pirl_train::{Learner, Metric, Pirl, Positives, StepLosses, TrainError};

const TEMPERATURE: f64 = 0.2;

fn learner(positives: Positives) -> Learner<Pirl> {
    let objective = objective(Ops::Fast)
        .loss(InfoNce::new(TEMPERATURE).unwrap())
        .positives(positives)
        .build()
        .unwrap();
    let network = |device: &Device| backbone(Ops::Fast, device);
    Learner::builder(network, objective).build().unwrap()
}

fn first_step(positives: Positives) -> StepLosses {
    learner(positives).step([Ok(batch(0))], 1, 0.0).unwrap()
}

fn term(losses: &StepLosses, name: &str) -> f64 {
    let found = losses.metrics.iter().find(|(key, _)| *key == name);
    match found {
        Some((_, Metric::Real(value))) => f64::from(*value),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn both_is_the_mean_of_the_bank_and_of_the_other_view() {
    let [bank, fresh, both] = [Positives::Bank, Positives::Fresh, Positives::Both].map(first_step);
    for name in ["loss_image", "loss_patch"] {
        let mean = 0.5 * (term(&bank, name) + term(&fresh, name));
        assert!((term(&both, name) - mean).abs() < 1e-5, "{name}");
        assert!(
            (term(&bank, name) - term(&fresh, name)).abs() > 1e-3,
            "{name}"
        );
    }
}

/// Features averaged over the views of an image, as they are, of unit length.
struct Average {
    views: usize,
}

impl Trainable for Average {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        Vec::new()
    }
}

impl Head for Average {
    fn forward(&self, features: &Tensor, _: Mode) -> Result<Tensor, ModelError> {
        let (rows, dim) = features.dims2()?;
        let images = features.reshape((rows / self.views, self.views, dim))?;
        l2_normalize(&images.mean(1)?)
    }
}

#[test]
fn fresh_is_cross_entropy_among_the_images_of_the_part() {
    let network = |device: &Device| backbone(Ops::Fast, device);
    let views = |views: &Tensor| {
        let features = network(&Device::Cpu)
            .unwrap()
            .forward(&normalised(views), Mode::Train);
        features.unwrap()
    };
    let part = batch(0);
    let f = Average { views: 1 }
        .forward(&views(&part.images), Mode::Train)
        .unwrap();
    let patches = views(part.transformed.as_ref().unwrap());
    let g = Average { views: VIEWS }
        .forward(&patches, Mode::Train)
        .unwrap();

    let objective = Pirl::builder(ROWS as usize, VIEWS)
        .dim(f.dim(1).unwrap())
        .negatives(NEGATIVES as usize)
        .loss(InfoNce::new(TEMPERATURE).unwrap())
        .image_head(|_, _| Ok(Average { views: 1 }))
        .transformed_head(|_, _| Ok(Average { views: VIEWS }))
        .positives(Positives::Fresh)
        .build()
        .unwrap();
    let mut learner = Learner::builder(network, objective).build().unwrap();
    let losses = learner.step([Ok(part)], 1, 0.0).unwrap();

    // Row i of the cosines: image i's view among the other views of all images.
    let cosines = (g.matmul(&f.t().unwrap()).unwrap() / TEMPERATURE).unwrap();
    let labels = Tensor::arange(0u32, BATCH as u32, &Device::Cpu).unwrap();
    for (name, logits) in [
        ("loss_patch", cosines.clone()),
        ("loss_image", cosines.t().unwrap()),
    ] {
        let expected = candle_nn::loss::cross_entropy(&logits.contiguous().unwrap(), &labels);
        let expected = f64::from(expected.unwrap().to_scalar::<f32>().unwrap());
        let found = term(&losses, name);
        assert!(
            (found - expected).abs() < 1e-4,
            "{name}: {found}, not {expected}"
        );
    }
}

/// As the networks get them: [`batch`] says how.
fn normalised(views: &Tensor) -> Tensor {
    batch(0).normalize.apply(views, &Device::Cpu).unwrap()
}

#[test]
fn the_other_view_needs_one() {
    for positives in [Positives::Fresh, Positives::Both] {
        let npid = Pirl::builder(100, 0).negatives(10).positives(positives);
        let error = npid.build().err().unwrap();
        assert!(matches!(error, TrainError::Setting(_)), "{error}");
        assert!(error.to_string().starts_with("positives = "), "{error}");
    }
}
