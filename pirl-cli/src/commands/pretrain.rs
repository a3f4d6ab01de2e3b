//! `pirl pretrain`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use pirl_core::memory;
use pirl_data::Pack;
use pirl_eval::{Knn, KnnChoice, KnnReport, Monitor};
use pirl_model::{ResNet, Trainable, read_backbone, save_backbone};
use pirl_recipes::{
    BankInit, Choice, Inputs, LossKind, MicroBatch, Recipe, RecipeError, Setting, backbone_seed,
    choose, fit, fit_memory, try_steps,
};
use pirl_train::{
    BACKBONE, Checkpoints, Ended, InitialWeights, MODEL, Metric, Objective, Pretraining, RunPacks,
    Step, TrainError, Training,
};
use serde_json::json;

use super::eval::recompute_batch_norm;
use crate::args::PretrainArgs;
use crate::interrupt::Interrupted;
use crate::output::{print, print_json, quoted};
use crate::progress::Progress;
use crate::ranks::{Company, share};
use crate::run_dir::{RunDir, matters_to_pretraining};
use crate::session::Session;
use crate::weights::Weights;
use crate::{device, weights};

pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    share(args.rank_timeout, |company| pretrain(args, company))
}

/// Nothing is written before everything that can be checked has been.
fn pretrain(args: &PretrainArgs, company: &Company) -> Result<()> {
    let devices = device::parse_several(&args.run.device)?;
    let packs = packs(args, company)?;
    let pack = Inputs::open(&company.own_path(&packs.data), &company.ranks);
    let pack = match args.data {
        Some(_) => pack?,
        None => pack.with_context(|| {
            let run = args.out.display();
            format!("the pack that {run} was started with (if it lies elsewhere now, give --data)")
        })?,
    };
    let (mut recipe, mut folder, mut backbone) = (Recipe::default(), None, None);
    if company.leads() {
        recipe = settings(args, &pack, &devices)?;
        if let Some(seed) = args.run.seed {
            recipe.seed = seed;
        }
        let initial;
        (backbone, initial) = initial_weights(args, &mut recipe)?;
        let mut checked = RunDir::check(&args.out, &recipe, args.resume, matters_to_pretraining)?;
        checked.initial = initial;
        checked.packs = Some(packs.clone());
        folder = Some(checked);
    }
    let recipe = recipe.of_rank_0(company.ranks.as_ref())?;
    let mut inputs = Inputs::new(recipe, pack, devices.len(), &company.ranks)?;
    inputs.bank_folder = args.out.join("bank");
    let kind = inputs.recipe.loss.kind;
    let command = Command {
        args,
        company,
        packs,
        folder,
        devices,
        backbone,
    };
    match kind {
        LossKind::Covariant => command.train(inputs, Inputs::covariant, |_, _| Ok(())),
        LossKind::Supervised => command.train(inputs, Inputs::supervised, |_, _| Ok(())),
        LossKind::Paper | LossKind::Nce | LossKind::InfoNce => {
            let device = command.devices[0].clone();
            let objective = move |inputs: &Inputs| inputs.pirl(&device);
            let (recipe, pack) = (inputs.recipe.clone(), inputs.pack.clone());
            command.train(inputs, objective, |training, session| {
                if training.done() > 0 || recipe.bank.init == BankInit::Random {
                    return Ok(());
                }
                let (view, size) = (recipe.eval_view(), recipe.train.batch_size);
                let workers = recipe.loader.workers;
                let total = pack.len() as u64;
                let mut progress = Progress::new("filling the bank", "images", total, 0);
                let mut show = |done: usize, _| {
                    progress.at(done as u64, String::new);
                    !session.interrupt().seen()
                };
                let learner = training.learner_mut();
                let filled = learner.fill_bank(&pack, &view, size, workers, &mut show)?;
                progress.finish();
                if training.any(!filled)? {
                    bail!(Interrupted(
                        "the first step was not reached; run the same command again with --resume"
                            .to_owned()
                    ));
                }
                Ok(())
            })
        }
    }
}

/// The packs typed, else, of a run that goes on, those it was started with, as rank 0 finds them.
fn packs(args: &PretrainArgs, company: &Company) -> Result<RunPacks> {
    let mut packs = RunPacks::default();
    if company.leads() {
        if args.resume {
            packs = RunPacks::read(&args.out)?.unwrap_or_default();
        }
        if let Some(data) = &args.data {
            packs.data = data.clone();
        }
        if let (Some(train), Some(test)) = (&args.probe_train, &args.probe_test) {
            packs.probes = Some([train.clone(), test.clone()]);
        }
        if packs.data.as_os_str().is_empty() {
            let run = RunDir::open(&args.out)?;
            bail!(
                "{} does not say which pack the run was started with: give --data",
                run.path().display()
            );
        }
    }
    let packs = serde_json::to_vec(&packs)?;
    let packs = company.ranks.broadcast(0, packs)?;
    Ok(serde_json::from_slice(&packs)?)
}

/// The settings: those of the recipe, fitted to the images, or chosen for them.
fn settings(args: &PretrainArgs, pack: &Pack, devices: &[Device]) -> Result<Recipe> {
    let typed = &args.run.settings;
    let length = ["train.epochs", "train.steps"];
    let both = |setting: &&Setting| length.iter().any(|key| setting.sets(key));
    if let (Some(_), Some(_)) = (args.time, typed.iter().find(both)) {
        bail!(
            "--time says how long the run is, and so does --set train.epochs or train.steps; give one"
        );
    }
    let name = match (&args.recipe, args.resume) {
        (Some(name), _) => name.clone(),
        (None, true) => {
            let config = RunDir::open(&args.out)?.config();
            config.to_string_lossy().into_owned()
        }
        (None, false) => {
            let prefix = args.run.weights_prefix.as_deref();
            let file = args
                .init_weights
                .as_deref()
                .map(|name| Weights { name, prefix });
            let network = file.map(weights::network);
            let network = network.transpose()?;
            let (recipe, choices) = choose(pack, &devices[0], network.as_ref(), typed)?;
            eprintln!("settings chosen for these images, all of which --set changes:");
            for Choice { key, value, reason } in &choices {
                eprintln!("  {key:<19} {value:<23} {reason}");
            }
            return Ok(recipe);
        }
    };
    let images = pack.len();
    let fit = |recipe: &mut Recipe| {
        fit(recipe, images);
        Ok(())
    };
    Recipe::load_adjusted(&name, fit, typed)
}

/// The backbone to begin with, and what is kept about it, unless the weights are random. A run that has
/// a checkpoint needs its initial weights no more: without --init-weights they are not read.
fn initial_weights(
    args: &PretrainArgs,
    recipe: &mut Recipe,
) -> Result<(Option<ResNet>, Option<InitialWeights>)> {
    let recorded = InitialWeights::read(&args.out)?; // none of a new run
    let typed = args.init_weights.as_deref();
    let path = recorded.as_ref().map(|run| run.path.to_string_lossy());
    let Some(weights) = typed.or(path.as_deref()) else {
        return Ok((None, None));
    };
    if !args.run.settings.iter().any(|set| set.sets("bank.init")) {
        recipe.bank.init = match args.resume {
            true => RunDir::open(&args.out)?.recipe()?.bank.init,
            false => BankInit::Features,
        };
    }
    if typed.is_none() && Checkpoints::newest_in(&args.out.join("checkpoints"))?.is_some() {
        return Ok((None, recorded));
    }
    let file = Weights {
        name: weights,
        prefix: args.run.weights_prefix.as_deref(),
    };
    let (backbone, initial) = weights::initial(file, recipe)?;
    if args.resume {
        initial.ensure_of(&args.out)?;
    }
    Ok((Some(backbone), Some(initial)))
}

/// A run that has been checked.
struct Command<'a> {
    args: &'a PretrainArgs,
    company: &'a Company,
    packs: RunPacks,
    /// The run's, on the rank that writes.
    folder: Option<RunDir>,
    devices: Vec<Device>,
    /// What it begins with, unless with random weights.
    backbone: Option<ResNet>,
}

impl Command<'_> {
    /// Trains, after what `prepare` does once the run's folder is there.
    fn train<O: Objective>(
        self,
        mut inputs: Inputs,
        objective: impl Fn(&Inputs) -> Result<O, RecipeError>,
        prepare: impl FnOnce(&mut Pretraining<O>, &Session<'_>) -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        self.plan(&mut inputs)?;
        let recipe = inputs.recipe.clone();
        let monitor = self.monitor(&recipe)?;
        let pack = inputs.pack.here()?;
        let mut identity = inputs.identity();
        if let Some(initial) = self
            .folder
            .as_ref()
            .and_then(|folder| folder.initial.as_ref())
        {
            identity = initial.identity(identity);
        }
        let learner = inputs.learner(objective(&inputs)?, &self.devices)?;
        if let Some(backbone) = &self.backbone {
            learner.backbone().load(&backbone.state()?)?;
        }
        let mut training = inputs.pretraining(learner)?;
        let mut session = Session::open(
            &mut training,
            self.folder.clone(),
            &recipe,
            identity,
            self.args.resume,
            format!(":\n  {}", resume_command(self.args)),
        )?;
        session.log_command = self.args.log_command.as_deref();
        self.company.log_to(&self.args.out)?;
        training.begin()?;
        prepare(&mut training, &session)?;
        let mut after_step = |training: &Pretraining<O>, _: &Step, progress: &Progress| {
            let (done, epoch) = (training.done(), training.steps_per_epoch().max(1));
            let due = done.is_multiple_of(epoch * recipe.eval.every as u64);
            match &monitor {
                Some(monitor) if due || done == training.steps() => {
                    let measured = monitor.measure(training.learner().backbone());
                    let measured = measured.map_err(|error| TrainError::Other(error.into()))?;
                    let Some(KnnReport { top1, chosen, .. }) = measured else {
                        return Ok(Vec::new());
                    };
                    let (epoch, KnnChoice { layer, k, .. }) = (done / epoch, chosen);
                    progress.suspend(|| {
                        eprintln!(
                            "epoch {epoch}: nearest neighbours {top1:.2}% ({layer}, k = {k})"
                        );
                    });
                    Ok(vec![("knn_top1", Metric::Real(top1 as f32))])
                }
                _ => Ok(Vec::new()),
            }
        };
        let ended = session.run(&mut training, &mut after_step)?;
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let checkpoint = ended.checkpoint.clone().unwrap_or_default();
        let weights = self.save_backbone(&recipe, &pack, &checkpoint)?;
        let seconds = started.elapsed().as_secs_f64();
        self.finish(
            folder,
            &training,
            ended,
            &weights,
            training.skipped(),
            seconds,
        )
    }

    /// Sets the number of epochs by `--time`, and says how long the run takes where its length was not
    /// typed.
    fn plan(&self, inputs: &mut Inputs) -> Result<()> {
        let started = Instant::now();
        if self.args.resume || (self.args.time.is_none() && self.args.recipe.is_some()) {
            return Ok(());
        }
        eprintln!("measuring a few steps");
        self.fit_memory(inputs)?;
        let (recipe, pack) = (inputs.recipe.clone(), inputs.pack.as_ref().clone());
        let again = Inputs::new(recipe, pack, self.devices.len(), &self.company.ranks)?;
        let trial = try_steps(again, &self.devices)?;
        let recipe = &mut inputs.recipe;
        if let Some(time) = self.args.time {
            recipe.train.epochs = trial.epochs(time.saturating_sub(started.elapsed()));
            recipe.train.steps = 0;
            let warm_up = &mut recipe.schedule.warmup_epochs;
            *warm_up = warm_up.min(recipe.train.epochs as f64 / 10.0);
        }
        *recipe = recipe.clone().of_rank_0(self.company.ranks.as_ref())?;
        let epochs = recipe.train.epochs;
        let minutes = trial.time(epochs).as_secs_f64() / 60.0;
        eprintln!(
            "{epochs} epochs of {} images: about {minutes:.0} minutes, at {:.0} ms a step",
            inputs.pack.len(),
            trial.seconds * 1e3
        );
        Ok(())
    }

    /// Without a recipe, has no more of a batch in the network at once than fits into memory.
    fn fit_memory(&self, inputs: &mut Inputs) -> Result<()> {
        const KEY: &str = "train.micro_batch";
        let typed = self.args.run.settings.iter().any(|set| set.sets(KEY));
        // Ranks would each measure something else.
        let host = self.devices.iter().all(Device::is_cpu) && self.company.ranks.size() == 1;
        let (Some(free), false, true, true) =
            (memory::free(), typed, host, self.args.recipe.is_none())
        else {
            return Ok(());
        };
        if let Some(found) = fit_memory(inputs, &self.devices, free)? {
            let MicroBatch {
                images,
                batch_bytes,
            } = found;
            let (batch, free) = (batch_bytes >> 20, free >> 20);
            eprintln!(
                "  {KEY:<19} {images:<23} a whole batch would take {batch} MiB, and {free} are free"
            );
        }
        Ok(())
    }

    /// What `--probe-train` and `--probe-test` ask for.
    fn monitor(&self, recipe: &Recipe) -> Result<Option<Monitor>> {
        let Some([train, test]) = &self.packs.probes else {
            return Ok(None);
        };
        let (company, ranks) = (self.company, &self.company.ranks);
        let (images, seed) = (recipe.eval.precise_batch_norm, recipe.batch_norm_seed());
        let knn = Knn::new(recipe.eval.knn.clone(), recipe.seed)?;
        let train = Pack::open(company.own_path(train))?;
        let test = Pack::open(company.own_path(test))?.with_class_names(train.class_names())?;
        let monitor = Monitor::new(train, test, recipe.extraction(), images, seed, knn, ranks);
        Ok(Some(monitor.context("--probe-train and --probe-test")?))
    }

    /// Saves the backbone of a finished run beside its last checkpoint's files with precise batch-norm
    /// statistics, for evaluations and exports, if the recipe asks for them. Returns the file that these
    /// take.
    fn save_backbone(&self, recipe: &Recipe, pack: &Pack, checkpoint: &Path) -> Result<PathBuf> {
        let (model, path) = (checkpoint.join(MODEL), checkpoint.join(BACKBONE));
        if path.is_file() {
            return Ok(path); // the run was finished before
        }
        if recipe.eval.precise_batch_norm == 0 {
            return Ok(model);
        }
        let backbone = ResNet::new(&recipe.model, backbone_seed(recipe), &self.devices[0])?;
        backbone
            .load(&read_backbone(&model)?.state)?
            .ensure_whole()?;
        let statistics = recompute_batch_norm(&backbone, recipe, pack, &recipe.extraction(), None)?;
        save_backbone(&path, &backbone.state()?, Some(statistics.images))?;
        Ok(path)
    }

    fn finish<T: Training>(
        &self,
        folder: &RunDir,
        training: &T,
        ended: Ended,
        weights: &Path,
        skipped: u64,
        seconds: f64,
    ) -> Result<()> {
        let out = &self.args.out;
        let (steps, epochs) = (
            training.done(),
            training.done() / training.steps_per_epoch().max(1),
        );
        let checkpoint = ended.checkpoint.unwrap_or_default();
        if self.args.run.json {
            return print_json(&json!({
                "run": out,
                "steps": steps,
                "epochs": epochs,
                "loss": ended.loss,
                "skipped": skipped,
                "seconds": seconds,
                "checkpoint": checkpoint,
                "weights": weights,
                "init_weights": folder.initial,
            }));
        }
        let loss = match ended.loss {
            Some(loss) => format!("last loss {loss:.4}"),
            None => "nothing was left to do".to_owned(),
        };
        print(&format!(
            "{}: {steps} steps, {epochs} epochs, {loss}, {seconds:.0} s\nweights  {}\nreport   {}",
            out.display(),
            weights.display(),
            folder.report().display()
        ))
    }
}

fn resume_command(args: &PretrainArgs) -> String {
    let device = match args.run.device.as_str() {
        "cpu" => String::new(),
        other => format!(" --device {other}"),
    };
    let log = args.log_command.as_deref().map(|it| quoted(Path::new(it)));
    let log = log.map_or(String::new(), |it| format!(" --log-command {it}"));
    let out = quoted(&args.out);
    format!("pirl pretrain --resume --out {out}{device}{log}")
}
