//! A trial of a few steps, which tells how many epochs there is time for.

use std::time::{Duration, Instant};

use candle_core::Device;
use pirl_core::memory;
use pirl_data::Pack;
use pirl_train::{Learner, Objective, Pirl, TrainError, Training, alone};

use crate::error::{RecipeError, Result};
use crate::inputs::Inputs;
use crate::recipe::{BankInit, LossKind, Recipe};

/// Most epochs where there is time for more: the paper's, whose last doubling gained little.
const MOST_EPOCHS: usize = 800;
/// Of the time given, what is left to the steps; saving and the report need the rest.
const SHARE_OF_STEPS: f64 = 0.95;
/// Steps of a trial, at most, the first not counted; and the time after which it ends.
const TRIAL_STEPS: u64 = 12;
const TRIAL_TIME: Duration = Duration::from_secs(8);
/// The same of filling the bank.
const FILL_TRIAL_TIME: Duration = Duration::from_secs(2);

/// How long a run's parts take.
pub struct Trial {
    /// Seconds of a step.
    pub seconds: f64,
    /// Seconds before the first step, in which the bank is filled from features; 0 where it is not.
    pub fill_seconds: f64,
    /// Steps of a pass over the images.
    pub steps_per_epoch: u64,
}

/// Does a few steps of the pre-training that `inputs` describes on `devices`, and forgets them: 13 at most,
/// for about 10 seconds.
///
/// # Errors
/// [`RecipeError::Train`] if the training cannot begin, or a step fails; [`RecipeError::TrialFolder`].
pub fn try_steps(mut inputs: Inputs, devices: &[Device]) -> Result<Trial> {
    // However short the recipe's run is, there are steps to measure.
    let train = &mut inputs.recipe.train;
    (train.steps, train.epochs) = (0, MOST_EPOCHS);
    // A mapped bank of the trial is no bank of the run.
    let folder = tempfile::tempdir().map_err(|source| RecipeError::TrialFolder { source })?;
    inputs.bank_folder = folder.path().to_owned();
    match inputs.recipe.loss.kind {
        LossKind::Covariant => {
            let objective = inputs.covariant()?;
            measure(inputs, objective, devices, |_| Ok(0.0))
        }
        LossKind::Supervised => {
            let objective = inputs.supervised()?;
            measure(inputs, objective, devices, |_| Ok(0.0))
        }
        LossKind::Paper | LossKind::Nce | LossKind::InfoNce => {
            let objective = devices.first().map(|device| inputs.pirl(device));
            let objective = objective.ok_or(TrainError::NoDevice)??;
            let (recipe, pack) = (inputs.recipe.clone(), inputs.pack.clone());
            measure(inputs, objective, devices, |learner| {
                match recipe.bank.init {
                    BankInit::Random => Ok(0.0),
                    BankInit::Features => fill_seconds(learner, &recipe, &pack),
                }
            })
        }
    }
}

/// Seconds in which `learner` fills its bank, told from a few batches, the first not counted.
fn fill_seconds(learner: &mut Learner<Pirl>, recipe: &Recipe, pack: &Pack) -> Result<f64> {
    let (size, workers) = (recipe.train.batch_size, recipe.loader.workers);
    let mut started = None::<(Instant, usize)>;
    let mut seconds = 0.0;
    learner.fill_bank(
        pack,
        &recipe.eval_view(),
        size,
        workers,
        &mut |done, all| {
            let (started, before) = *started.get_or_insert((Instant::now(), done));
            let elapsed = started.elapsed();
            if done > before {
                seconds = elapsed.as_secs_f64() / (done - before) as f64 * all as f64;
            }
            elapsed < FILL_TRIAL_TIME
        },
    )?;
    Ok(seconds)
}

fn measure<O: Objective>(
    inputs: Inputs,
    objective: O,
    devices: &[Device],
    before: impl FnOnce(&mut Learner<O>) -> Result<f64>,
) -> Result<Trial> {
    let learner = inputs.learner(objective, devices)?;
    let mut training = inputs.pretraining(learner)?;
    let fill_seconds = before(training.learner_mut())?;
    let steps_per_epoch = training.steps_per_epoch();
    // The first one allocates the buffers.
    training.step()?;
    let (started, before) = (Instant::now(), training.done());
    while training.done() - before < TRIAL_STEPS && started.elapsed() < TRIAL_TIME {
        training.step()?;
    }
    Ok(Trial {
        fill_seconds,
        seconds: started.elapsed().as_secs_f64() / (training.done() - before) as f64,
        steps_per_epoch,
    })
}

/// The most images of a batch that may be in the network at once (`train.micro_batch`) within `free` bytes
/// of memory: half of the batch, a quarter, ... It is told from what steps with 16 take. `None` if all of
/// the batch fits, or what is taken is not known.
///
/// # Errors
/// As [`try_steps`], and those of [`Inputs::new`].
fn micro_batch_for(
    recipe: &Recipe,
    pack: Pack,
    devices: &[Device],
    free: u64,
) -> Result<Option<MicroBatch>> {
    let batch = recipe.train.batch_size;
    let tried = batch.min(16);
    let mut small = recipe.clone();
    (small.train.batch_size, small.train.micro_batch) = (tried, tried);
    let (trial, taken) = memory::taken(|| {
        let inputs = Inputs::new(small, pack, devices.len(), &alone())?;
        try_steps(inputs, devices)
    });
    trial?;
    Ok(taken.and_then(|taken| largest(batch, taken / tried as u64, free)))
}

/// Lowers `train.micro_batch` of `inputs` where more of a batch would be in the network at once than fits into
/// `free` bytes, by a trial on `devices`, and returns what fits there; `None` where nothing had to be lowered.
///
/// # Errors
/// As [`try_steps`].
pub fn fit_memory(
    inputs: &mut Inputs,
    devices: &[Device],
    free: u64,
) -> Result<Option<MicroBatch>> {
    let (mut recipe, pack) = (inputs.recipe.clone(), inputs.pack.as_ref().clone());
    let found = micro_batch_for(&recipe, pack.clone(), devices, free)?;
    let at_once = match recipe.train.micro_batch {
        0 => recipe.train.batch_size,
        some => some,
    };
    let Some(found) = found.filter(|found| found.images < at_once) else {
        return Ok(None);
    };
    recipe.train.micro_batch = found.images;
    let bank_folder = std::mem::take(&mut inputs.bank_folder);
    *inputs = Inputs::new(recipe, pack, devices.len(), &alone())?;
    inputs.bank_folder = bank_folder;
    Ok(Some(found))
}

/// Images at once that fit into memory, fewer than a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// How many.
    pub images: usize,
    /// Bytes that a whole batch would take.
    pub batch_bytes: u64,
}

/// Of memory that is free, what a batch may take: other programs need some, and so do the bank and the loader.
const SHARE_OF_MEMORY: f64 = 0.6;

fn largest(batch: usize, bytes: u64, free: u64) -> Option<MicroBatch> {
    if bytes == 0 {
        return None;
    }
    let most = (free as f64 * SHARE_OF_MEMORY) as u64 / bytes;
    let batch_bytes = bytes * batch as u64;
    let halves = std::iter::successors(Some(batch), |images| Some(images.div_ceil(2)));
    let fits = |images: &usize| *images as u64 <= most || *images <= 2;
    let images = halves.take(64).find(fits).unwrap_or(1);
    (images < batch).then_some(MicroBatch {
        images,
        batch_bytes,
    })
}

impl Trial {
    /// Epochs that fit into `time`, from 1 to the paper's 800; some of the time is left for saving and the
    /// report.
    pub fn epochs(&self, time: Duration) -> usize {
        let epoch = self.seconds * self.steps_per_epoch as f64;
        let steps = time.as_secs_f64() * SHARE_OF_STEPS - self.fill_seconds;
        let epochs = steps / epoch.max(f64::MIN_POSITIVE);
        (epochs as usize).clamp(1, MOST_EPOCHS)
    }

    /// How long so many epochs take, with what precedes them.
    pub fn time(&self, epochs: usize) -> Duration {
        let steps = self.seconds * (self.steps_per_epoch * epochs as u64) as f64;
        Duration::from_secs_f64(self.fill_seconds + steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pirl_data::{DataError, Encoding, PackOptions, RawSample, Source, pack};

    #[test]
    fn a_batch_is_halved_until_it_fits() {
        const MIB: u64 = 1 << 20;
        assert_eq!(largest(128, 10 * MIB, 4096 * MIB), None);
        let found = largest(128, 10 * MIB, 1024 * MIB).unwrap();
        assert_eq!((found.images, found.batch_bytes), (32, 1280 * MIB));
        assert_eq!(largest(100, 10 * MIB, 1024 * MIB).unwrap().images, 50);
        assert_eq!(largest(128, 1 << 50, MIB).unwrap().images, 2); // batch norm needs two
        assert_eq!(largest(128, 0, 0), None);
    }

    #[test]
    fn epochs_fill_the_time() {
        let trial = Trial {
            seconds: 0.5,
            fill_seconds: 50.0,
            steps_per_epoch: 20,
        };
        assert_eq!(trial.epochs(Duration::from_secs(1000)), 90);
        assert_eq!(trial.epochs(Duration::from_secs(1)), 1);
        assert_eq!(trial.epochs(Duration::from_secs(1 << 40)), MOST_EPOCHS);
        assert_eq!(trial.time(95), Duration::from_secs(1000));
    }

    struct Gray;

    impl Source for Gray {
        fn len(&self) -> usize {
            24
        }
        fn class_names(&self) -> &[String] {
            &[]
        }
        fn read(&self, index: usize) -> std::result::Result<RawSample<'_>, DataError> {
            let pixels = (0..256).map(|at| (at * (index + 3) % 251) as u8);
            Ok(RawSample {
                name: index.to_string(),
                bytes: pixels.collect::<Vec<u8>>().into(),
                encoding: Encoding::Raw {
                    height: 16,
                    width: 16,
                    channels: 1,
                },
                label: None,
                objects: None,
            })
        }
        fn describe(&self) -> String {
            "grey".to_owned()
        }
    }

    #[test]
    fn filling_the_bank_takes_time_where_it_is_filled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pack");
        pack(&Gray, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
        let trial = |init: &str| {
            let settings = [
                "model.width=0.25",
                "train.batch_size=4",
                "loss.negatives=8",
                "loader.workers=1",
                init,
            ];
            let settings = settings.map(|setting| setting.parse().unwrap());
            let recipe = Recipe::load("fashion-mnist", &settings).unwrap();
            let inputs = Inputs::new(recipe, Pack::open(&path).unwrap(), 1, &alone()).unwrap();
            try_steps(inputs, &[Device::Cpu]).unwrap()
        };
        let (filled, random) = (trial("bank.init=features"), trial("bank.init=random"));
        assert!(filled.fill_seconds > 0.0 && filled.seconds > 0.0);
        assert_eq!(random.fill_seconds, 0.0);
        assert_eq!(random.steps_per_epoch, 6);
    }
}
