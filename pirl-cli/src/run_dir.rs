//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pirl_core::FolderLock;
use pirl_recipes::Recipe;
use pirl_train::{InitialWeights, RunPacks};

use crate::output::{quoted, write_file};

/// A folder with `config.toml`, of pre-training also `packs.json` and `initial_weights.json` unless these were
/// random, `metrics.jsonl`, TensorBoard events, `checkpoints/` and `report.html`.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// What it begins with, unless with random weights.
    pub(crate) initial: Option<InitialWeights>,
    /// What a pre-training is made of.
    pub(crate) packs: Option<RunPacks>,
}

impl RunDir {
    /// The folder of a new run, which is not made yet: only where there is nothing, or with `resumes` of
    /// one that was started before, with settings that do not differ in keys that `matters`.
    pub(crate) fn check(
        path: &Path,
        recipe: &Recipe,
        resumes: bool,
        matters: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let folder = Self {
            path: path.to_owned(),
            initial: None,
            packs: None,
        };
        if !resumes {
            check_free(path)?;
            return Ok(folder);
        }
        let folder = Self::open(path)?;
        let started = folder
            .recipe()
            .with_context(|| format!("{} cannot be resumed", path.display()))?;
        let conflicts = started.differences(recipe, matters)?;
        ensure!(
            conflicts.is_empty(),
            "{} was started with other settings: {}; resume with those of {}, or choose another --out",
            path.display(),
            conflicts.join("; "),
            folder.config().display()
        );
        Ok(folder)
    }

    /// Opens the folder of a run that was started before.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let run = Self {
            path: path.to_owned(),
            initial: None,
            packs: None,
        };
        if !run.config().is_file() {
            bail!(
                "{} is not the folder of a run: it has no config.toml",
                path.display()
            );
        }
        Ok(run)
    }

    /// Keeps other processes from the folder, which is made if need be: two would mix their metrics and
    /// delete each other's checkpoints.
    pub(crate) fn lock(&self, resumes: bool) -> Result<FolderLock> {
        let shown = self.path.display();
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make the run's folder {shown}"))?;
        let lock = FolderLock::acquire(&self.path).with_context(|| shown.to_string())?;
        // One that has ended since the folder was looked at.
        ensure!(
            resumes || !self.config().exists(),
            "{shown}: another run began here; go on with it by --resume, or choose another --out"
        );
        Ok(lock)
    }

    /// Writes the settings into the folder.
    pub(crate) fn begin(&self, recipe: &Recipe) -> Result<()> {
        if let Some(initial) = &self.initial {
            initial.write(&self.path)?;
        }
        if let Some(packs) = &self.packs {
            packs.write(&self.path)?;
        }
        let head = self.head()?;
        write_file(
            &self.config(),
            format!("{head}\n{}", recipe.to_toml()?).as_bytes(),
        )
    }

    /// The commands that have worked on the run, each with the version of this program, as comments.
    fn head(&self) -> Result<String> {
        let before = match fs::read_to_string(self.config()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read {}", self.config().display()));
            }
        };
        let mut lines: Vec<&str> = before
            .lines()
            .take_while(|it| it.starts_with('#'))
            .collect();
        let words = std::env::args_os().skip(1);
        let words: Vec<String> = words.map(|word| quoted(Path::new(&word))).collect();
        let command = words.join(" ").replace(['\n', '\r'], " ");
        let line = format!("# pirl {}: pirl {command}", env!("CARGO_PKG_VERSION"));
        if !lines.contains(&line.as_str()) {
            lines.push(&line);
        }
        Ok(lines.join("\n") + "\n")
    }

    /// The settings the run was started with.
    pub(crate) fn recipe(&self) -> Result<Recipe> {
        let path = self.config();
        Ok(Recipe::load(&path.to_string_lossy(), &[])?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(crate) fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }
}

/// Whether a new run may live at `path`: only where there is nothing yet.
fn check_free(path: &Path) -> Result<()> {
    match fs::read_dir(path) {
        Ok(mut entries) => ensure!(
            entries.next().is_none(),
            "{} is not empty; go on with the run there by --resume, or choose another --out",
            path.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot use {} as --out", path.display()));
        }
    }
    Ok(())
}

/// Whether a key of the recipe touches what pre-training computes.
pub(crate) fn matters_to_pretraining(key: &str) -> bool {
    const FREE: [&str; 8] = [
        "bank.sharded",
        "model.winograd", // so that a run from before it can go on with its own rounding
        "train.epochs",
        "train.steps",
        "log.",
        "checkpoint.",
        "loader.",
        "eval.",
    ];
    !FREE.iter().any(|free| key.starts_with(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_or_absent_folder_is_free() {
        let folder = tempfile::tempdir().unwrap();
        check_free(folder.path()).unwrap();
        check_free(&folder.path().join("new")).unwrap();
        fs::write(folder.path().join("note"), "").unwrap();
        let error = format!("{:#}", check_free(folder.path()).unwrap_err());
        assert!(error.contains("--resume"), "{error}");
        assert!(check_free(&folder.path().join("note")).is_err());
    }

    #[test]
    fn conflicts_are_the_keys_that_change_the_run() {
        let load = |settings: &[&str]| {
            let settings: Vec<_> = settings.iter().map(|s| s.parse().unwrap()).collect();
            Recipe::load("fashion-mnist", &settings).unwrap()
        };
        let conflicts = |a: &[&str], b: &[&str]| {
            let differences = load(a).differences(&load(b), matters_to_pretraining);
            differences.unwrap()
        };
        let free = [
            "train.epochs=99",
            "log.every=3",
            "loader.workers=7",
            "eval.knn.k=3",
        ];
        assert!(conflicts(&[], &free).is_empty());
        let found = conflicts(&["optim.lr=0.5"], &["optim.lr=0.25", "log.every=3"]);
        assert_eq!(found, ["optim.lr = 0.5, now 0.25"]);
    }
}
