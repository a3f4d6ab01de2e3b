//! `pirl study`: many runs, compared.

use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pirl_recipes::Setting;
use pirl_study::{
    Conducted, Estimate, Event, Images, Plan, Processes, Study, StudyFolder, conduct, list_runs,
    write_report,
};

use crate::args::StudyArgs;
use crate::device;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

/// Runs at the same time on a CPU, at most, unless `--jobs` says more.
const JOBS: usize = 4;

pub(crate) fn run(args: &StudyArgs) -> Result<()> {
    let images = images(args)?;
    let mut study = Study::load(&args.study)?;
    if let Some(recipe) = &args.recipe {
        study = study.with_recipe(recipe);
    }
    if !args.seeds.is_empty() {
        study.seeds.clone_from(&args.seeds);
    }
    device::parse_several(&args.device)?;
    let mut typed = args.settings.clone();
    let mut plan = Plan::new(&args.study, study.clone(), &images, &typed)?;
    let (jobs, threads) = shares(args, plan.runs.len());

    let known = StudyFolder::epochs(&args.out)?;
    let mut estimate = None;
    if let Some(time) = args.time {
        let epochs = match known {
            Some(epochs) => epochs,
            None => {
                let all = measure(&plan, &images, |_| true, (jobs, threads))?;
                let estimate = estimate.insert(all);
                match estimate.epochs(time) {
                    Some(epochs) => epochs,
                    None => {
                        estimate.set_epochs(1);
                        bail!(
                            "--time {}: an epoch of each of the {} runs, and what is measured of them, \
                             take about {}; give more time or fewer --seeds, or measure less",
                            in_time(time),
                            estimate.runs.len(),
                            in_time(estimate.time())
                        )
                    }
                }
            }
        };
        typed.extend([
            Setting::new("train.epochs", i64::try_from(epochs)?.into()),
            Setting::new("train.steps", 0.into()),
        ]);
        plan = Plan::new(&args.study, study, &images, &typed)?;
        if let Some(estimate) = &mut estimate {
            estimate.set_epochs(epochs);
        }
    }
    let identity = plan.identity(&images)?;
    let folder = StudyFolder::check(&args.out, &identity)?;
    for reason in &plan.left_out {
        tracing::warn!("left out: {reason}");
    }
    let missing = |run: usize| !folder.is_done(&plan.runs[run]);
    let count = (0..plan.runs.len()).filter(|run| missing(*run)).count();
    let estimate = match (estimate, count) {
        (Some(estimate), _) => Some(estimate),
        (None, 0) => None,
        (None, _) => Some(measure(&plan, &images, missing, (jobs, threads))?),
    };
    if let Some(estimate) = &estimate {
        for reason in &estimate.unknown {
            tracing::warn!("not in the estimate: {reason}");
        }
        eprintln!(
            "{} runs, {} of them there already; {jobs} at a time, {threads} thread{} each: about {}, {} MiB",
            plan.runs.len(),
            plan.runs.len() - count,
            if threads == 1 { "" } else { "s" },
            in_time(estimate.time()),
            estimate.bytes() >> 20
        );
        estimate.check_disk(&args.out)?;
    }
    if args.dry_run {
        return say_plan(args, &plan, &folder, estimate.as_ref());
    }
    folder.begin(&identity)?;
    if let (Some(_), Some(run)) = (args.time, plan.runs.first()) {
        folder.keep_epochs(run.recipe.train.epochs)?;
    }
    let conducted = make(args, &plan, &images, &folder, (jobs, threads))?;
    finish(args, &plan, &folder, &conducted)
}

fn images(args: &StudyArgs) -> Result<Images> {
    let (train, test) = (&args.probe_train, &args.probe_test);
    ensure!(
        train.len() == test.len(),
        "--probe-train is given {} times and --probe-test {}: give them in pairs",
        train.len(),
        test.len()
    );
    let probes: Vec<_> = train.iter().cloned().zip(test.iter().cloned()).collect();
    let detection = args
        .detect_train
        .as_deref()
        .zip(args.detect_test.as_deref());
    Ok(Images::open(&args.data, &probes, detection)?)
}

/// Runs at the same time, and threads of each.
fn shares(args: &StudyArgs, runs: usize) -> (usize, usize) {
    let cores = available_parallelism().map_or(1, usize::from);
    let devices = args.device.split(',').count();
    let by_default = match args.device.as_str() {
        "cpu" => cores.min(JOBS),
        _ => devices,
    };
    let jobs = args.jobs.unwrap_or(by_default).clamp(1, runs.max(1));
    (jobs, (cores / jobs).max(1))
}

fn measure(
    plan: &Plan,
    images: &Images,
    missing: impl Fn(usize) -> bool,
    shares: (usize, usize),
) -> Result<Estimate> {
    let mut progress: Option<Progress> = None;
    let estimate = Estimate::measure(plan, images, missing, shares, &mut |done, total| {
        let new = || Progress::new("measuring a few steps of each", "kinds", total as u64, 0);
        progress
            .get_or_insert_with(new)
            .at(done as u64, String::new);
    });
    progress.iter().for_each(Progress::finish);
    Ok(estimate?)
}

fn say_plan(
    args: &StudyArgs,
    plan: &Plan,
    folder: &StudyFolder,
    estimate: Option<&Estimate>,
) -> Result<()> {
    let cost = |run: usize| estimate.and_then(|estimate| estimate.runs[run]);
    if args.json {
        return print_json(&list_runs(plan, folder, estimate));
    }
    let mut text = String::new();
    for (place, run) in plan.runs.iter().enumerate() {
        let state = match (folder.is_done(run), cost(place)) {
            (true, _) => "there".to_owned(),
            (false, Some(cost)) => in_time(Duration::from_secs_f64(cost.seconds())),
            (false, None) => String::new(),
        };
        text += &format!("{} {state:>10}  {}\n", run.key, run.name);
    }
    print(&text)
}

/// Makes what is missing, and the report after each run.
fn make(
    args: &StudyArgs,
    plan: &Plan,
    images: &Images,
    folder: &StudyFolder,
    (jobs, threads): (usize, usize),
) -> Result<Conducted> {
    let interrupt = Interrupt::install()?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let devices = args.device.split(',').map(str::to_owned).collect();
    let processes = Processes::new(program, images, devices, threads);
    let total = plan.runs.len() as u64;
    let mut done = plan.runs.iter().filter(|run| folder.is_done(run)).count() as u64;
    let mut progress = Progress::new("study", "runs", total, done);
    let mut observe = |run: usize, event: &Event| {
        let name = &plan.runs[run].name;
        match event {
            Event::Begun => return Ok(()),
            Event::Done(time) => {
                done += 1;
                progress.suspend(|| eprintln!("{name}: {}", in_time(*time)));
            }
            Event::Failed(reason) => progress.suspend(|| eprintln!("{name} failed: {reason}")),
        }
        progress.at(done, String::new);
        write_report(plan, folder, facts(args)).map(|_| ())
    };
    let goes_on = || !interrupt.seen();
    let conducted = conduct(plan, folder, jobs, &processes, &mut observe, &goes_on)?;
    progress.finish();
    Ok(conducted)
}

/// What the report says of it above the figures.
fn facts(args: &StudyArgs) -> Vec<(String, String)> {
    vec![("data".to_owned(), args.data.display().to_string())]
}

fn finish(
    args: &StudyArgs,
    plan: &Plan,
    folder: &StudyFolder,
    conducted: &Conducted,
) -> Result<()> {
    let outcome = write_report(plan, folder, facts(args))?;
    if conducted.interrupted {
        bail!(Interrupted(format!(
            "{} of {} runs are there; to go on give the same command",
            conducted.found + conducted.made,
            plan.runs.len()
        )));
    }
    if args.json {
        print_json(&outcome)?;
    } else {
        let report = folder.path().join("report.html");
        print(&format!("{outcome}report   {}", report.display()))?;
    }
    if let Some((first, reason)) = conducted.failed.first() {
        bail!(
            "{} of {} runs failed, the first of them {} ({}): {reason}\nThe others are there; the same \
             command tries them again",
            conducted.failed.len(),
            plan.runs.len(),
            plan.runs[*first].name,
            folder.run(&plan.runs[*first]).display()
        );
    }
    Ok(())
}

/// Such as "1h 3m" or "40s".
fn in_time(time: Duration) -> String {
    let seconds = match time.as_secs() {
        seconds @ 600.. => seconds / 60 * 60,
        seconds => seconds,
    };
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}
