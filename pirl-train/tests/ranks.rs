//! Ranks that share a batch take the steps of one process; here they are threads.

mod common;

use candle_core::Device;
use common::{LR, RANKS_WAIT, VIEWS, backbone, batch, cut, objective};
use pirl_bank::SharedSampler;
use pirl_loss::{InfoNce, Paper};
use pirl_model::Ops;
use pirl_train::{
    Covariant, Learner, Objective, Pirl, PirlBuilder, Positives, Ranks, ShardedKind, Threads,
    TrainError, alone,
};

const STEPS: u64 = 4;
const ROWS: usize = 96;

/// Losses of each step, and the weights after the last.
type Found = (Vec<f32>, Vec<f32>);

/// What a rank finds that takes steps on its parts of batches of 16 in parts of `micro_batch`.
fn steps<O: Objective>(
    ranks: Ranks,
    micro_batch: usize,
    objective: O,
) -> Result<Found, TrainError> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let network = move |device: &Device| {
        let network = backbone(Ops::Fast, device)?;
        if rank > 0 {
            // Every rank begins with what rank 0 has.
            let var = network.parameters().var();
            var.set(&var.as_detached_tensor().zeros_like()?)?;
        }
        Ok(network)
    };
    let mut learner = Learner::builder(network, objective).ranks(ranks).build()?;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let parts = cut(&batch(step as usize), micro_batch);
        let own = parts.len() * rank / size..parts.len() * (rank + 1) / size;
        let parts = parts[own].iter().cloned().map(Ok);
        losses.push(learner.step(parts, step + 1, LR)?.total);
    }
    let weights = learner.backbone().parameter_sets()[0].var().to_vec1()?;
    Ok((losses, weights))
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let pairs = found.iter().zip(expected);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Two and four ranks have the losses and weights of one process with the same parts, and all ranks
/// the same bits.
fn alike<O: Objective>(objective: impl Fn(&Ranks) -> O + Sync, first: f32, later: f32) {
    let one = steps(alone(), 4, objective(&alone())).unwrap();
    for size in [2, 4] {
        let found = Threads::run(size, RANKS_WAIT, |ranks| {
            let objective = objective(&ranks);
            steps(ranks, 4, objective).unwrap()
        });
        let (losses, weights) = &found[0];
        assert!(found.iter().all(|(l, w)| l == losses && w == weights));
        let (early, all) = (&losses[..1], losses.as_slice());
        assert!(
            difference(early, &one.0) <= first * one.0[0],
            "{losses:?}, alone {:?}",
            one.0
        );
        assert!(
            difference(all, &one.0) <= later * one.0[0],
            "{losses:?}, alone {:?}",
            one.0
        );
        assert!(difference(weights, &one.1) < 1e-4);
    }
}

fn pirl() -> PirlBuilder {
    objective(Ops::Fast).sampler(SharedSampler).seed(5)
}

#[test]
fn ranks_take_the_steps_of_one_process() {
    // The sums of the first step are those of one process; later ones differ by rounding.
    alike(|_| pirl().build().unwrap(), 1e-6, 1e-4);
    alike(
        |_| pirl().positives(Positives::Both).build().unwrap(),
        1e-6,
        1e-4,
    );
    alike(|_| Covariant::new(VIEWS, 3, 1, Ops::Fast), 1e-6, 1e-4);
    alike(
        |_| pirl().loss(InfoNce::new(0.1).unwrap()).build().unwrap(),
        1e-6,
        1e-4,
    );
    alike(|_| pirl().nce(0.1).build().unwrap(), 1e-5, 1e-4);
}

/// A PIRL whose bank is random, so that shards of it are made alike.
fn random(negatives: usize) -> PirlBuilder {
    Pirl::builder(ROWS, VIEWS)
        .dim(32)
        .negatives(negatives)
        .seed(5)
}

#[test]
fn a_bank_that_is_shared_out_has_the_loss_of_one_that_is_whole() {
    let whole = |loss: Paper| random(40).loss(loss).build().unwrap();
    let expected = steps(alone(), 4, whole(Paper::new(0.1).unwrap())).unwrap();
    let kinds = [
        (ShardedKind::Paper, expected),
        (
            ShardedKind::InfoNce,
            steps(
                alone(),
                4,
                random(40).loss(InfoNce::new(0.1).unwrap()).build().unwrap(),
            )
            .unwrap(),
        ),
    ];
    for (kind, expected) in kinds {
        for size in [1, 2, 4] {
            let found = Threads::run(size, RANKS_WAIT, |ranks| {
                let objective = random(40).sharded(kind, 0.1, &ranks).build().unwrap();
                assert_eq!(objective.bank().len(), ROWS / size);
                steps(ranks, 4, objective).unwrap()
            });
            assert!(found.iter().all(|rank| *rank == found[0]));
            let error = difference(&found[0].0, &expected.0) / expected.0[0];
            assert!(
                error < 1e-5,
                "{kind:?}, {size} ranks: {:?}, {:?}",
                found[0].0,
                expected.0
            );
            assert!(difference(&found[0].1, &expected.1) < 1e-4);
        }
    }
}

#[test]
fn a_rank_that_fails_ends_the_others() {
    let errors = Threads::run(2, RANKS_WAIT, |ranks| {
        if ranks.rank() == 1 {
            ranks.abort("image 7 is damaged");
            return String::new();
        }
        steps(ranks, 4, pirl().build().unwrap())
            .unwrap_err()
            .to_string()
    });
    assert!(
        errors[0].contains("rank 1 has ended: image 7"),
        "{}",
        errors[0]
    );
}
