//! How long the runs of a study take, and what they leave on the disk, by a trial of each kind.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use pirl_data::Pack;
use pirl_eval::detect::DetectTrainer;
use pirl_eval::{
    EvalError, FeatureSet, Knn, LinearProbe, LowShot, Presence, Probe, Svm, extract_features,
    pixel_features,
};
use pirl_model::ResNet;
use pirl_recipes::{Inputs, LossKind, Recipe, backbone_seed, try_steps};
use pirl_train::{Training, alone};
use rayon::ThreadPoolBuilder;
use serde::Serialize;

use crate::error::{Result, StudyError, at};
use crate::plan::{Evaluation, Images, Plan, Run, Task};

/// Images that features are read of in a trial, and how many of them are tested.
const TRIED: usize = 1024;
const TESTED: usize = 256;
/// Steps of a detector, after the first, and images that it is tested on.
const DETECTOR_STEPS: u64 = 3;
const DETECTOR_TESTED: usize = 8;
/// Seconds for which a process begins and ends.
const PROCESS: f64 = 0.3;
/// Forward and backward pass, in forward passes.
const TRAINING: f64 = 3.0;

/// What a run takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Seconds of an epoch of its training.
    pub epoch: f64,
    /// Epochs.
    pub epochs: usize,
    /// Seconds of all the rest: filling the bank, evaluations.
    pub rest: f64,
    /// Bytes on the disk.
    pub bytes: u64,
}

impl Cost {
    /// Seconds in all.
    pub fn seconds(&self) -> f64 {
        self.epoch * self.epochs as f64 + self.rest
    }
}

/// What the runs of a plan take.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// In the order of the runs; `None` for those that were not asked for.
    pub runs: Vec<Option<Cost>>,
    /// Runs that are made at the same time.
    pub jobs: usize,
    /// What could not be measured and counts as nothing, with the reason: its runs may well fail.
    pub unknown: Vec<String>,
}

impl Estimate {
    /// Measures it of the runs that are `missing`, by their places: of each kind of training a few steps, of
    /// each evaluation a few images, `jobs` at the same time on `threads` threads each, as the runs will be
    /// made. `progress` gets the kinds that are measured, and those there are.
    ///
    /// # Errors
    /// [`StudyError::Recipe`] if a run's settings cannot be written.
    pub fn measure(
        plan: &Plan,
        images: &Images,
        missing: impl Fn(usize) -> bool,
        (jobs, threads): (usize, usize),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let runs = plan.runs.iter().enumerate();
        let runs: Vec<Option<&Run>> = runs
            .map(|(place, run)| missing(place).then_some(run))
            .collect();
        let mut kinds = BTreeMap::new();
        for run in runs.iter().flatten() {
            kinds.entry(kind(run)?).or_insert(*run);
        }
        let (mut measured, mut unknown) = (BTreeMap::new(), Vec::new());
        let total = kinds.len();
        for (done, (kind, run)) in kinds.into_iter().enumerate() {
            progress(done, total);
            let tried = several(run, images, jobs, threads);
            measured.insert(
                kind,
                tried.unwrap_or_else(|error| {
                    unknown.push(error.to_string());
                    Tried::default()
                }),
            );
        }
        progress(total, total);
        let runs = runs.into_iter().map(|run| {
            let Some(run) = run else { return Ok(None) };
            let tried = measured.get(&kind(run)?).copied().unwrap_or_default();
            Ok(Some(tried.cost(run, images)))
        });
        Ok(Self {
            runs: runs.collect::<Result<_>>()?,
            jobs,
            unknown,
        })
    }

    /// How long the runs take when each begins as soon as one before it has ended.
    pub fn time(&self) -> Duration {
        let mut busy = vec![0.0f64; self.jobs.max(1)];
        for cost in self.runs.iter().flatten() {
            if let Some(first) = busy.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *first += cost.seconds();
            }
        }
        Duration::from_secs_f64(busy.into_iter().fold(0.0, f64::max))
    }

    /// Has every run train for so many epochs.
    pub fn set_epochs(&mut self, epochs: usize) {
        let runs = self.runs.iter_mut().flatten();
        runs.for_each(|cost| cost.epochs = epochs);
    }

    /// Epochs of every run for which all of them take `time`; `None` if there is no time for one.
    pub fn epochs(&self, time: Duration) -> Option<usize> {
        let sum = |of: fn(&Cost) -> f64| self.runs.iter().flatten().map(of).sum::<f64>();
        let (rest, epoch) = (sum(|cost| cost.rest), sum(|cost| cost.epoch));
        let all = time.as_secs_f64() * self.jobs.max(1) as f64;
        // With the last runs some jobs have nothing left to do.
        let epochs = (0.97 * all - rest) / epoch.max(f64::MIN_POSITIVE);
        (epochs >= 1.0).then_some(epochs as usize)
    }

    /// Bytes on the disk in all.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().flatten().map(|cost| cost.bytes).sum()
    }

    /// Checks that the runs fit on the disk of `folder`. Where the system does not say what is free, they do.
    ///
    /// # Errors
    /// [`StudyError::Disk`].
    pub fn check_disk(&self, folder: &Path) -> Result<()> {
        let needed = self.bytes();
        let mut there = folder;
        while !there.exists() {
            there = match there.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
        }
        let there = there.canonicalize().map_err(at(there))?;
        let Ok(disk) = rustix::fs::statvfs(&there) else {
            return Ok(());
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            return Err(StudyError::Disk {
                folder: folder.to_owned(),
                needed: needed >> 20,
                free: free >> 20,
            });
        }
        Ok(())
    }
}

/// The settings that what a run takes depends on; runs of one kind take as long as each other.
fn kind(run: &Run) -> Result<String> {
    const KEYS: [&str; 10] = [
        "data.image_size",
        "data.patch_size",
        "pretext.kind",
        "pretext.grid",
        "loss.kind",
        "loss.negatives",
        "loss.positives",
        "loss.sampling",
        "train.batch_size",
        "train.micro_batch",
    ];
    // The classes of the covariant head, whose products are most of a step where there are thousands.
    let classes = run.recipe.loss.kind == LossKind::Covariant;
    let matters = |key: &str| {
        let tables = ["model.", "bank.", "eval."];
        KEYS.contains(&key)
            || (classes && key == "pretext.permutations")
            || tables.iter().any(|table| key.starts_with(table))
    };
    let flat = run.recipe.flat()?.into_iter();
    let lines = flat.filter(|(key, _)| matters(key));
    let mut text: String = lines
        .map(|(key, value)| format!("{key}={value} "))
        .collect();
    // Without its term the transformed view is not made.
    if run.recipe.loss.lambda == 0.0 {
        text += "untransformed ";
    }
    for task in &run.tasks {
        text += &format!("{:?} ", task.evaluation);
    }
    Ok(text + if run.trained { "trained" } else { "" })
}

/// What was measured of a kind of run, seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    /// Before the first step.
    fill: f64,
    step: f64,
    steps_per_epoch: u64,
    /// An image through the network, as evaluations show it.
    image: f64,
    /// Linear classifiers of a training image and all their epochs.
    linear: f64,
    /// Neighbours of a tested image among one training image.
    knn: f64,
    /// Support vector machines of a training image.
    svm: f64,
    /// A low-shot evaluation of as many labels as it has here, whatever the images.
    low_shot: f64,
    /// A step of a detector, and an image that it is tested on.
    detector_step: f64,
    detector_image: f64,
}

/// The mean of `jobs` trials at the same time.
fn several(run: &Run, images: &Images, jobs: usize, threads: usize) -> Result<Tried> {
    let jobs = jobs.max(1);
    let tried = std::thread::scope(|scope| {
        let each = || scope.spawn(|| on_threads(run, images, threads));
        let all: Vec<_> = (0..jobs).map(|_| each()).collect();
        let joined = all.into_iter().map(|trial| match trial.join() {
            Ok(tried) => tried,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let mean = |of: fn(&Tried) -> f64| tried.iter().map(of).sum::<f64>() / jobs as f64;
    Ok(Tried {
        step: mean(|tried| tried.step),
        fill: mean(|tried| tried.fill),
        steps_per_epoch: tried.first().map_or(0, |tried| tried.steps_per_epoch),
        image: mean(|tried| tried.image),
        linear: mean(|tried| tried.linear),
        knn: mean(|tried| tried.knn),
        svm: mean(|tried| tried.svm),
        low_shot: mean(|tried| tried.low_shot),
        detector_step: mean(|tried| tried.detector_step),
        detector_image: mean(|tried| tried.detector_image),
    })
}

fn on_threads(run: &Run, images: &Images, threads: usize) -> Result<Tried> {
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| StudyError::Trial {
        run: run.name.clone(),
        source,
    };
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| wrong(error.into()))?;
    let mut recipe = run.recipe.clone();
    recipe.loader.workers = threads;
    pool.install(|| attempt(&recipe, run, images))
        .map_err(wrong)
}

type Attempted<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn attempt(recipe: &Recipe, run: &Run, images: &Images) -> Attempted<Tried> {
    let mut tried = Tried::default();
    if run.trained {
        let inputs = Inputs::new(recipe.clone(), images.data.pack.clone(), 1, &alone())?;
        let trial = try_steps(inputs, &[Device::Cpu])?;
        (tried.step, tried.steps_per_epoch) = (trial.seconds, trial.steps_per_epoch);
        tried.fill = trial.fill_seconds;
    }
    let backbone = ResNet::new(&recipe.model, backbone_seed(recipe), &Device::Cpu)?;
    let asks = |evaluation: fn(&Evaluation) -> bool| {
        run.tasks.iter().any(|task| evaluation(&task.evaluation))
    };
    if asks(|evaluation| *evaluation == Evaluation::Detect) {
        attempt_detector(recipe, &backbone, images, &mut tried)?;
    }
    let (eval, extraction) = (&recipe.eval, recipe.extraction());
    let few = |pack: &Pack, count: usize| pack.subset(count.min(pack.len()), recipe.seed);
    let read = |pack: &Pack| extract_features(&backbone, pack, &extraction, &mut |_, _| {});
    let (train, test) = match images.probes.first() {
        Some((train, test)) => (&train.pack, Some(&test.pack)),
        None => (&images.data.pack, None),
    };
    let train = few(train, TRIED)?;
    read(&few(&train, 64)?)?; // allocates the buffers
    let started = Instant::now();
    let features = read(&train)?;
    tried.image = started.elapsed().as_secs_f64() / train.len() as f64;
    let Some(test) = test else {
        return Ok(tried);
    };
    let test = few(test, TESTED)?;
    let tested = read(&test)?;
    if asks(|evaluation| matches!(evaluation, Evaluation::Svm(_))) {
        tried.svm = attempt_svm(recipe, (&train, &features), (&test, &tested))?;
    }
    let mut few_labels = run.tasks.iter();
    let few_labels = few_labels.find(|task| matches!(task.evaluation, Evaluation::LowShot(_)));
    if let Some(task) = few_labels {
        tried.low_shot = attempt_low_shot(task, (&train, &features), (&test, &tested))?;
    }
    let mut sets = vec![(features, tested)];
    if !run.trained {
        // Raw pixels are measured with it.
        let read = |pack: &Pack| pixel_features(pack, &extraction, &mut |_, _| {});
        let started = Instant::now();
        let pixels = read(&train)?;
        tried.image += started.elapsed().as_secs_f64() / train.len() as f64;
        sets.push((pixels, read(&test)?));
    }
    for (train, test) in &sets {
        let images = train.labels().len();
        if asks(|evaluation| matches!(evaluation, Evaluation::Linear(_))) {
            let probe = LinearProbe::new(eval.linear.clone(), recipe.seed)?;
            let started = Instant::now();
            probe.evaluate(train, test, &mut |_, _| {})?;
            tried.linear += started.elapsed().as_secs_f64() / images as f64;
        }
        if asks(|evaluation| matches!(evaluation, Evaluation::Knn(_))) {
            let probe = Knn::new(eval.knn.clone(), recipe.seed)?;
            let started = Instant::now();
            probe.evaluate(train, test, &mut |_, _| {})?;
            let pairs = pairs(images, test.labels().len(), eval.knn.held_out);
            tried.knn += started.elapsed().as_secs_f64() / pairs;
        }
    }
    Ok(tried)
}

/// Seconds of support vector machines, for a training image.
fn attempt_svm(
    recipe: &Recipe,
    (train, features): (&Pack, &FeatureSet),
    (test, tested): (&Pack, &FeatureSet),
) -> Attempted<f64> {
    let probe = Svm::new(recipe.eval.svm.clone(), recipe.seed)?;
    let (present, test_present) = Presence::of_packs(train, test)?;
    let started = Instant::now();
    let (train, test) = ((features, &present), (tested, &test_present));
    probe.evaluate(train, test, &mut |_, _| {})?;
    Ok(started.elapsed().as_secs_f64() / features.labels().len() as f64)
}

/// Seconds of a low-shot evaluation, by one draw of one label of each class.
fn attempt_low_shot(
    task: &Task,
    (train, features): (&Pack, &FeatureSet),
    (test, tested): (&Pack, &FeatureSet),
) -> Attempted<f64> {
    let mut eval = task.recipe.eval.clone();
    let config = &mut eval.low_shot;
    let labels = (config.draws * config.shots.iter().sum::<usize>()) as f64;
    (config.draws, config.shots) = (1, vec![1]);
    let mut probe = LowShot::new(&eval, task.recipe.seed)?;
    if train.has_objects() {
        let (train, test) = Presence::of_packs(train, test)?;
        probe = probe.with_presence(train, test)?;
    }
    let started = Instant::now();
    match probe.evaluate(features, tested, &mut |_, _| {}) {
        Ok(_) => Ok(labels * started.elapsed().as_secs_f64()),
        // So many classes that the images tried have none of one: not estimated.
        Err(EvalError::NoPositives { .. }) => Ok(0.0),
        Err(error) => Err(error.into()),
    }
}

/// A few steps of a detector, and a few images found in.
fn attempt_detector(
    recipe: &Recipe,
    backbone: &ResNet,
    images: &Images,
    tried: &mut Tried,
) -> Attempted<()> {
    let Some((train, test)) = &images.detection else {
        return Ok(());
    };
    let normal = (&recipe.data.mean[..], &recipe.data.std[..]);
    let config = &recipe.eval.detect;
    let mut trainer =
        DetectTrainer::new(backbone, &train.pack, normal, config, recipe.seed, &alone())?;
    trainer.step()?; // allocates the buffers
    let started = Instant::now();
    let steps = DETECTOR_STEPS.min(trainer.steps().saturating_sub(1));
    for _ in 0..steps {
        trainer.step()?;
    }
    tried.detector_step = started.elapsed().as_secs_f64() / steps.max(1) as f64;
    let test = test
        .pack
        .subset(DETECTOR_TESTED.min(test.pack.len()), recipe.seed)?;
    let started = Instant::now();
    trainer.detect(&test, &mut |_, _| {})?;
    tried.detector_image = started.elapsed().as_secs_f64() / test.len() as f64;
    Ok(())
}

/// Pairs of images that nearest neighbours compare, with those of the choice on held-out images.
fn pairs(train: usize, test: usize, held_out: f64) -> f64 {
    let (train, test) = (train as f64, test as f64);
    train * test + held_out * (1.0 - held_out) * train * train
}

impl Tried {
    /// What a run of this kind takes.
    fn cost(&self, run: &Run, images: &Images) -> Cost {
        let recipe = &run.recipe;
        let mut cost = Cost::default();
        if run.trained {
            let trained_on = match recipe.data.limit {
                0 => images.data.pack.len(),
                limit => limit,
            };
            cost.epoch = self.step * self.steps_per_epoch as f64;
            cost.epochs = recipe.train.epochs;
            if recipe.train.steps > 0 {
                // So many steps, however they are counted in epochs.
                cost.epoch = self.step * recipe.train.steps as f64;
                cost.epochs = 1;
            }
            let contrastive = recipe.loss.kind.is_contrastive();
            let statistics = recipe.eval.precise_batch_norm as f64 * self.image;
            cost.rest += PROCESS + self.fill + statistics;
            let rows = if contrastive { trained_on } else { 0 };
            let bank = 4 * (rows * recipe.bank.dim) as u64;
            cost.bytes = recipe.checkpoint.keep as u64 * (bank + 3 * parameters(recipe));
        }
        let mut read = Vec::new();
        for Task { evaluation, .. } in &run.tasks {
            cost.rest += PROCESS;
            let (data, probed) = match *evaluation {
                Evaluation::Linear(data)
                | Evaluation::Knn(data)
                | Evaluation::Svm(data)
                | Evaluation::LowShot(data) => (data, true),
                Evaluation::Finetune(_, data) => (data, false),
                Evaluation::Detect => {
                    cost.rest += self.detector(recipe, images);
                    continue;
                }
                Evaluation::Invariance => continue,
            };
            let Some((train, test)) = images.probes.get(data) else {
                continue;
            };
            let (train, test) = (train.pack.len(), test.pack.len());
            if probed && !read.contains(&data) {
                read.push(data);
                cost.rest += (train + test) as f64 * self.image;
            }
            cost.rest += match *evaluation {
                Evaluation::Linear(_) => train as f64 * self.linear,
                Evaluation::Svm(_) => train as f64 * self.svm,
                Evaluation::LowShot(_) => self.low_shot,
                Evaluation::Knn(_) => pairs(train, test, recipe.eval.knn.held_out) * self.knn,
                Evaluation::Finetune(labels, _) => {
                    let seen = labels * (train * recipe.eval.finetune.epochs) as f64;
                    (TRAINING * seen + test as f64) * self.image
                }
                _ => 0.0,
            };
        }
        cost
    }

    /// Seconds in which a detector learns, and is tested as often as the recipe asks for.
    fn detector(&self, recipe: &Recipe, images: &Images) -> f64 {
        let config = &recipe.eval.detect;
        let steps = config.steps;
        let tests = match config.evaluate_every {
            0 => 1,
            every => steps.div_ceil(every),
        };
        let tested = images
            .detection
            .as_ref()
            .map_or(0, |(_, test)| test.pack.len());
        steps as f64 * self.detector_step + (tests * tested) as f64 * self.detector_image
    }
}

/// Bytes of a network's parameters.
fn parameters(recipe: &Recipe) -> u64 {
    let network = ResNet::new(&recipe.model, 0, &Device::Cpu);
    let state = network.and_then(|network| pirl_model::Trainable::state(&network));
    let tensors = state.map_or_else(
        |_| Vec::new(),
        |state| state.values().map(|tensor| tensor.elem_count()).collect(),
    );
    4 * tensors.iter().sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_kind_do_the_same_work() {
        let kind_of = |settings: &str| {
            let nine = "pretext.grid=3 pretext.crop_size=27 ";
            let settings = nine.to_owned() + settings;
            let settings = settings.split(' ').map(|set| set.parse().unwrap());
            let run = Run {
                key: String::new(),
                name: String::new(),
                recipe: Recipe::load("cifar10", &settings.collect::<Vec<_>>()).unwrap(),
                trained: true,
                tasks: Vec::new(),
            };
            kind(&run).unwrap()
        };
        let classes = |count: u32| format!("loss.kind=covariant pretext.permutations={count}");
        assert_ne!(kind_of(&classes(10)), kind_of(&classes(10_000)));
        let orders = |count: u32| format!("loss.kind=infonce pretext.permutations={count}");
        assert_eq!(kind_of(&orders(10)), kind_of(&orders(10_000)));
        let weight = |lambda: f64| format!("loss.positives=bank loss.lambda={lambda}");
        assert_ne!(kind_of(&weight(0.0)), kind_of(&weight(0.5)));
        assert_eq!(kind_of(&weight(0.25)), kind_of(&weight(0.5)));
    }

    #[test]
    fn jobs_are_filled_in_their_order_and_time_sets_the_epochs() {
        let cost = |epoch: f64, rest: f64| {
            Some(Cost {
                epoch,
                epochs: 2,
                rest,
                bytes: 1 << 20,
            })
        };
        let mut estimate = Estimate {
            runs: vec![cost(5.0, 0.0), cost(10.0, 1.0), cost(4.0, 2.0)],
            jobs: 2,
            unknown: Vec::new(),
        };
        // 10 then 10 (8 + 2) beside 21.
        assert_eq!(estimate.time(), Duration::from_secs(21));
        assert_eq!(estimate.bytes(), 3 << 20);
        // 2 x 100 x 0.97 seconds, less 3, at 19 an epoch.
        assert_eq!(estimate.epochs(Duration::from_secs(100)), Some(10));
        assert_eq!(estimate.epochs(Duration::from_secs(11)), None);
        // Without one that is there already.
        estimate.runs[1] = None;
        assert_eq!(estimate.time(), Duration::from_secs(10));
        assert_eq!(estimate.bytes(), 2 << 20);
        estimate.set_epochs(3);
        assert_eq!(estimate.time(), Duration::from_secs(15));
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new/study");
        estimate.check_disk(&new).unwrap();
        let huge = Cost {
            bytes: 1 << 60,
            ..Cost::default()
        };
        estimate.runs.push(Some(huge));
        let error = estimate.check_disk(&new).unwrap_err().to_string();
        assert!(
            error.contains("new/study") && error.contains("are free"),
            "{error}"
        );
    }
}
