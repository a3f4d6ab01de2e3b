//! Stages of a study's runs, each as a process of `pirl`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pirl_core::file;
use rustix::process::{Pid, Signal, kill_process};

use crate::conduct::{Launcher, Stage};
use crate::folder::StudyFolder;
use crate::plan::{Evaluation, Images, Run, Task};

/// Of a process' words, what a reason has at most.
const WORDS: usize = 400;

/// Carries out each stage as a process of the command-line program, which ends when this process does.
pub struct Processes<'a> {
    program: PathBuf,
    images: &'a Images,
    devices: Vec<String>,
    threads: usize,
    running: Mutex<Vec<Pid>>,
    stopped: AtomicBool,
}

impl<'a> Processes<'a> {
    /// Processes of `program`, `pirl`, on `images`; each on one of `devices` (as `--device` takes them), in
    /// turn, and on so many `threads`.
    pub fn new(program: PathBuf, images: &'a Images, devices: Vec<String>, threads: usize) -> Self {
        Self {
            program,
            images,
            devices,
            threads,
            running: Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// The command line of a stage, and the folder of what it writes.
    fn command(
        &self,
        folder: &StudyFolder,
        run: &Run,
        stage: Stage<'_>,
        recipe: &Path,
    ) -> std::result::Result<Vec<OsString>, String> {
        let mut line = Line(Vec::new());
        match stage {
            Stage::Pretrain { resumes } => {
                line.words(&["pretrain"])
                    .path("--data", &self.images.data.path);
                line.path("--out", &folder.network(run));
                if resumes {
                    line.words(&["--resume"]);
                }
            }
            Stage::Evaluate(task) => self.evaluation(folder, run, task, &mut line)?,
        }
        line.path("--recipe", recipe);
        Ok(line.0)
    }

    fn evaluation(
        &self,
        folder: &StudyFolder,
        run: &Run,
        task: &Task,
        line: &mut Line,
    ) -> std::result::Result<(), String> {
        let (name, pair) = match task.evaluation {
            Evaluation::Linear(data) => ("linear", data),
            Evaluation::Knn(data) => ("knn", data),
            Evaluation::Svm(data) => ("svm", data),
            Evaluation::LowShot(data) => ("low-shot", data),
            Evaluation::Finetune(_, data) => ("finetune", data),
            Evaluation::Detect => ("detect", 0),
            Evaluation::Invariance => ("invariance", 0),
        };
        let packs = match task.evaluation {
            Evaluation::Detect => self.images.detection.as_ref(),
            _ => self.images.probes.get(pair),
        };
        let (train, test) = packs.ok_or("there are no images for it")?;
        let (train, test) = (&train.path, &test.path);
        let out = folder.run(run).join(&task.folder);
        if task.evaluation == Evaluation::Invariance {
            line.words(&["analyze", name]).path("--data", test);
        } else {
            line.words(&["eval", name])
                .path("--train", train)
                .path("--test", test);
        }
        line.path("--out", &out);
        match run.trained {
            true => line.path("--weights", &folder.network(run)),
            false => line.words(&["--weights", "random"]),
        };
        match task.evaluation {
            Evaluation::Linear(_)
            | Evaluation::Knn(_)
            | Evaluation::Svm(_)
            | Evaluation::LowShot(_) => {
                line.path("--cache", &folder.features(run));
            }
            Evaluation::Finetune(..) | Evaluation::Detect => {
                if out.join("config.toml").is_file() {
                    line.words(&["--resume"]);
                } else if out.exists() {
                    fs::remove_dir_all(&out)
                        .map_err(|error| format!("{}: {error}", out.display()))?;
                }
            }
            Evaluation::Invariance => {}
        }
        Ok(())
    }

    /// Runs a process to its end; what it printed.
    fn process(
        &self,
        line: &[OsString],
        device: &str,
        log: &Path,
    ) -> std::result::Result<String, String> {
        let words = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        let errors = File::create(log).map_err(words(&log.to_string_lossy()))?;
        let started = Command::new(&self.program)
            .args(line)
            .args(["--device", device, "--json", "--end-with-stdin"])
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .stdin(Stdio::piped()) // whose end is that of this process
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0) // Ctrl-C reaches it by `stop` alone, once
            .spawn();
        let mut child: Child = started.map_err(words("cannot start"))?;
        let pid = Pid::from_child(&child);
        self.with_running(|running| running.push(pid));
        if self.stopped.load(Ordering::SeqCst) {
            end(pid); // `stop` may have come before it was known
        }
        let stdin = child.stdin.take();
        let mut text = String::new();
        let read = match &mut child.stdout {
            Some(stdout) => stdout.read_to_string(&mut text).map(|_| ()),
            None => Ok(()),
        };
        let status = child.wait();
        drop(stdin);
        self.with_running(|running| running.retain(|other| *other != pid));
        read.map_err(words("reading its output"))?;
        let status = status.map_err(words("waiting for it"))?;
        match status.success() {
            true => Ok(text),
            false => Err(format!("{} ({status}; {})", last_words(log), log.display())),
        }
    }

    fn with_running(&self, change: impl FnOnce(&mut Vec<Pid>)) {
        match self.running.lock() {
            Ok(mut running) => change(&mut running),
            Err(poisoned) => change(&mut poisoned.into_inner()),
        }
    }
}

impl Launcher for Processes<'_> {
    fn launch(
        &self,
        folder: &StudyFolder,
        run: &Run,
        stage: Stage<'_>,
        recipe: &Path,
        job: usize,
    ) -> std::result::Result<(), String> {
        let line = self.command(folder, run, stage, recipe)?;
        if self.stopped.load(Ordering::SeqCst) {
            return Err("the study was asked to end".to_owned());
        }
        let device = self.devices.get(job % self.devices.len().max(1));
        let device = device.map_or("cpu", String::as_str);
        let log = recipe.with_extension("log");
        let printed = self.process(&line, device, &log)?;
        if let Stage::Pretrain { .. } = stage {
            let done = folder.trained(run);
            let written = file::write(&done, printed.as_bytes());
            written.map_err(|error| format!("{}: {error}", done.display()))?;
        }
        Ok(())
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.with_running(|running| running.iter().for_each(|pid| end(*pid)));
    }
}

/// Asks a process to end; one that has just ended is no trouble.
fn end(pid: Pid) {
    let _ = kill_process(pid, Signal::TERM);
}

/// What a process said last: its error, if it gave one.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let error = text
        .rfind("error: ")
        .map(|at| &text[at + "error: ".len()..]);
    let words = error.or_else(|| text.trim_end().lines().last());
    let words: String = words
        .unwrap_or_default()
        .trim()
        .chars()
        .take(WORDS)
        .collect();
    match words.is_empty() {
        true => "it said nothing".to_owned(),
        false => words,
    }
}

/// A command line.
struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(OsString::from));
        self
    }

    fn path(&mut self, flag: &str, path: &Path) -> &mut Self {
        self.0.push(flag.into());
        self.0.push(path.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_error_and_else_the_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, "training 3/9\nerror: the disk is full\nfree some\n").unwrap();
        assert_eq!(last_words(&log), "the disk is full\nfree some");
        fs::write(&log, "a\nb\n").unwrap();
        assert_eq!(last_words(&log), "b");
        fs::write(&log, "").unwrap();
        assert_eq!(last_words(&log), "it said nothing");
    }
}
