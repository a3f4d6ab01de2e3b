//! Making what is missing of a study, several runs at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::error::{Result, StudyError, at};
use crate::folder::StudyFolder;
use crate::plan::{Plan, Run, Task};

/// How often it is asked whether to go on.
const PATIENCE: Duration = Duration::from_millis(200);

/// A stage of a run.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// Its training, into a folder that is new, or to be gone on with; the file `done` is to be made when
    /// it has ended.
    Pretrain {
        /// Whether the folder has a part of it.
        resumes: bool,
    },
    /// An evaluation, whose `result.json` is made when it has ended.
    Evaluate(&'a Task),
}

/// What carries out the stages of runs.
pub trait Launcher: Sync {
    /// Carries out a stage, on the threads or the device of place `job`. `recipe` is the file with its
    /// settings.
    ///
    /// # Errors
    /// In words, why it has failed; what is left of it is gone on with when the study is run again.
    fn launch(
        &self,
        folder: &StudyFolder,
        run: &Run,
        stage: Stage<'_>,
        recipe: &Path,
        job: usize,
    ) -> std::result::Result<(), String>;

    /// Asks the stages that are being carried out to end.
    fn stop(&self);
}

/// What happens to a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// It has begun.
    Begun,
    /// All of it is there, after so long.
    Done(Duration),
    /// A stage has failed, for this reason.
    Failed(String),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Conducted {
    /// Runs that were made.
    pub made: usize,
    /// Runs that were there already.
    pub found: usize,
    /// Runs that failed, by their place, and why.
    pub failed: Vec<(usize, String)>,
    /// Whether it ended early.
    pub interrupted: bool,
}

/// Makes the runs of `plan` that are not in `folder` yet, `jobs` at a time. `observe` is told of each run,
/// by its place; `goes_on` is asked from time to time.
///
/// # Errors
/// [`StudyError::Io`] if a run's folder cannot be made. A run that fails is no error: the others are made.
pub fn conduct(
    plan: &Plan,
    folder: &StudyFolder,
    jobs: usize,
    launcher: &dyn Launcher,
    observe: &mut dyn FnMut(usize, &Event) -> Result<()>,
    goes_on: &dyn Fn() -> bool,
) -> Result<Conducted> {
    let missing: VecDeque<usize> = (0..plan.runs.len())
        .filter(|run| !folder.is_done(&plan.runs[*run]))
        .collect();
    let mut conducted = Conducted {
        found: plan.runs.len() - missing.len(),
        ..Conducted::default()
    };
    let (missing, stopped) = (Mutex::new(missing), AtomicBool::new(false));
    let next = || match stopped.load(Ordering::SeqCst) {
        true => None,
        false => missing.lock().ok()?.pop_front(),
    };
    let (events, inbox) = channel();
    thread::scope(|scope| {
        for job in 0..jobs.max(1) {
            let (events, next, stopped) = (events.clone(), &next, &stopped);
            scope.spawn(move || {
                while let Some(place) = next() {
                    let started = Instant::now();
                    let _ = events.send((place, Ok(Event::Begun)));
                    let made = make(folder, &plan.runs[place], launcher, job);
                    let event = match made {
                        Ok(Ok(())) => Ok(Event::Done(started.elapsed())),
                        Ok(Err(reason)) => Ok(Event::Failed(reason)),
                        Err(error) => Err(error),
                    };
                    if stopped.load(Ordering::SeqCst) && !matches!(event, Ok(Event::Done(_))) {
                        break; // it was asked to end
                    }
                    let _ = events.send((place, event));
                }
            });
        }
        drop(events);
        let stop = || {
            if !stopped.swap(true, Ordering::SeqCst) {
                launcher.stop();
            }
        };
        let mut outcome = Ok(());
        loop {
            match inbox.recv_timeout(PATIENCE) {
                Ok((place, event)) => {
                    let seen = event.and_then(|event| {
                        match &event {
                            Event::Begun => {}
                            Event::Done(_) => conducted.made += 1,
                            Event::Failed(reason) => conducted.failed.push((place, reason.clone())),
                        }
                        observe(place, &event)
                    });
                    if let Err(error) = seen {
                        stop();
                        outcome = Err(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !goes_on() {
                conducted.interrupted = true;
                stop();
            }
        }
        outcome
    })?;
    conducted.failed.sort();
    Ok(conducted)
}

/// Carries out the stages of a run that are not there yet.
fn make(
    folder: &StudyFolder,
    run: &Run,
    launcher: &dyn Launcher,
    job: usize,
) -> Result<std::result::Result<(), String>> {
    let path = folder.run(run);
    fs::create_dir_all(&path).map_err(at(&path))?;
    if run.trained && !folder.trained(run).is_file() {
        let recipe = write_recipe(&path.join("recipe.toml"), &run.recipe)?;
        let network = folder.network(run);
        let resumes = network.join("config.toml").is_file();
        if !resumes {
            remove(&network)?;
        }
        let stage = Stage::Pretrain { resumes };
        if let Err(reason) = launcher.launch(folder, run, stage, &recipe, job) {
            return Ok(Err(reason));
        }
    }
    for task in &run.tasks {
        if folder.result(run, task).is_file() {
            continue;
        }
        let recipe = write_recipe(&path.join(format!("{}.toml", task.folder)), &task.recipe)?;
        let stage = Stage::Evaluate(task);
        if let Err(reason) = launcher.launch(folder, run, stage, &recipe, job) {
            return Ok(Err(reason));
        }
    }
    remove(&folder.features(run))?;
    Ok(Ok(()))
}

fn write_recipe(path: &Path, recipe: &pirl_recipes::Recipe) -> Result<PathBuf> {
    pirl_core::file::write(path, recipe.to_toml()?.as_bytes()).map_err(at(path))?;
    Ok(path.to_owned())
}

/// Removes a folder, should there be one.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StudyError::Io {
            path: folder.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
