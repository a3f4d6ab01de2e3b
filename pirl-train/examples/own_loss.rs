//! A loss of one's own: a margin between the positive and the hardest negative.
//!
//!     cargo run --release -p pirl-train --example own_loss -- FOLDER
mod support;

use candle_core::{D, Tensor};
use pirl_loss::{ContrastiveLoss, LossError, Negatives};
use pirl_train::{Learner, Pirl};

/// The mean over images of `max(0, margin - s_p + max_n s_n)`.
#[derive(Debug)]
struct HardestNegative {
    margin: f64,
}

impl ContrastiveLoss for HardestNegative {
    fn forward(
        &self,
        query: &Tensor,        // (B, D): f(I) or g(I^t), unit rows
        positive: &Tensor,     // (B, D): the images' rows of the bank
        negatives: &Negatives, // rows of other images
    ) -> Result<Tensor, LossError> {
        let s_p = (query * positive)?.sum(D::Minus1)?;
        // An image that was drawn as its own negative has a score of about minus infinity there.
        let s_n = negatives.scores(query)?.max(D::Minus1)?;
        Ok(((s_n - s_p)? + self.margin)?.relu()?.mean_all()?)
    }
}

fn main() -> support::Result<()> {
    let (images, jigsaw) = (support::images()?, support::jigsaw()?);
    let objective = Pirl::builder(images.len(), jigsaw.views())
        .negatives(images.len() - 1)
        .loss(HardestNegative { margin: 0.5 });
    let learner = Learner::builder(support::resnet, objective.build()?).build()?;
    support::train(learner, support::loader(images, Some(jigsaw))?)
}
