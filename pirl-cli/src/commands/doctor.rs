//! `pirl doctor`: does this machine compute what it should, and how fast?

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use candle_core::Device;
use pirl_data::{Loader, Normalize, Pack, Share};
use pirl_doctor::{
    Machine, Report, Speed, TimedStep, Versions, Workload, cases, check_all, noise_batch,
    timed_step,
};
use pirl_recipes::{Inputs, LossKind, Recipe};
use pirl_train::{BoxError, Objective, alone};

use crate::args::DoctorArgs;
use crate::device;
use crate::output::{print, print_json};

/// Sizes of the batches that are timed.
const ON_CPU: [usize; 3] = [2, 4, 8];
const ON_GPU: [usize; 4] = [16, 32, 64, 128];

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let cases = if args.skip_checks {
        Vec::new()
    } else {
        cases()
    };
    let checks = check_all(&cases, &device);
    let report = Report::new(
        Versions::new(option_env!("PIRL_CANDLE_VERSION"), &device),
        Machine::of(&args.device, &device)?,
        checks,
        speed(args, &device)?,
    );
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.to_string())?;
    }
    ensure!(
        report.passed,
        "{} on {}: do not trust what is trained here with them; report it with the output of \
         `pirl doctor --json`",
        report.failed().join(", "),
        report.device.name
    );
    Ok(())
}

fn speed(args: &DoctorArgs, device: &Device) -> Result<Speed> {
    let mut recipe = Recipe::load(&args.recipe, &args.settings)?;
    recipe.data.limit = 0;
    recipe.train.micro_batch = 0;
    let sizes: &[usize] = match args.batch_sizes.as_slice() {
        [] if device.is_cpu() => &ON_CPU,
        [] => &ON_GPU,
        sizes => sizes,
    };
    let time = Duration::from_secs(args.seconds.into());
    let recipe = Timed { recipe, device };
    Ok(Speed::measure(&args.recipe, &recipe, sizes, time)?)
}

/// A recipe whose step and loader are timed.
struct Timed<'a> {
    recipe: Recipe,
    device: &'a Device,
}

impl Workload for Timed<'_> {
    fn device(&self) -> &Device {
        self.device
    }

    /// The bank has a row for each image, so there must be enough to draw from.
    fn images(&self, batch_size: usize) -> usize {
        self.recipe.loss.negatives + 1 + batch_size
    }

    fn step(&self, pack: Pack, batch_size: usize) -> Result<TimedStep, BoxError> {
        let mut recipe = self.recipe.clone();
        recipe.train.batch_size = batch_size;
        let inputs = Inputs::new(recipe, pack, 1, &alone())?;
        let step = match inputs.recipe.loss.kind {
            LossKind::Covariant => self.steps(&inputs, inputs.covariant()?),
            LossKind::Supervised => self.steps(&inputs, inputs.supervised()?),
            _ => self.steps(&inputs, inputs.pirl(self.device)?),
        };
        Ok(step?)
    }

    fn loader(&self, pack: Arc<Pack>) -> Result<(Loader, usize), BoxError> {
        let mut recipe = self.recipe.clone();
        recipe.train.batch_size = recipe.train.batch_size.min(pack.len());
        recipe.loader.workers = 0;
        let pretext = pirl_recipes::pretext(&recipe)?;
        let loader = pirl_recipes::loader(&recipe, &pack, pretext, 1, Share::default())?;
        Ok((loader, pirl_recipes::workers(&recipe)))
    }
}

impl Timed<'_> {
    fn steps<O: Objective + 'static>(&self, inputs: &Inputs, objective: O) -> Result<TimedStep> {
        let Recipe { data, train, .. } = &inputs.recipe;
        let learner = inputs.learner(objective, std::slice::from_ref(self.device))?;
        let normalize = Normalize::new(data.mean.as_slice(), data.std.as_slice())?;
        let pretext = inputs.pretext.as_deref();
        let batch = noise_batch(train.batch_size, data.image_size, pretext, normalize)?;
        Ok(timed_step(learner, batch, self.device))
    }
}
