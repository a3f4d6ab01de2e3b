//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::files;
use crate::recipe::Recipe;

/// A folder with `config.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/` and
/// `report.html`.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Whether a new run may live at `path`: only where there is nothing yet.
    pub(crate) fn check_free(path: &Path) -> Result<()> {
        match fs::read_dir(path) {
            Ok(mut entries) => ensure!(
                entries.next().is_none(),
                "{} is not empty; go on with the run there by --resume, or choose another --out",
                path.display()
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot use {} as --out", path.display()));
            }
        }
        Ok(())
    }

    /// Makes the folder of a new run.
    pub(crate) fn create(path: &Path, recipe: &Recipe) -> Result<Self> {
        Self::check_free(path)?;
        let run = Self {
            path: path.to_owned(),
        };
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the run's folder {}", path.display()))?;
        run.write_config(recipe)?;
        Ok(run)
    }

    /// Opens the folder of a run that was started before.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let run = Self {
            path: path.to_owned(),
        };
        if !run.config().is_file() {
            bail!(
                "{} is not the folder of a run: it has no config.toml",
                path.display()
            );
        }
        Ok(run)
    }

    pub(crate) fn write_config(&self, recipe: &Recipe) -> Result<()> {
        files::write_whole(&self.config(), recipe.to_toml()?.as_bytes())
    }

    /// The settings the run was started with.
    pub(crate) fn recipe(&self) -> Result<Recipe> {
        let path = self.config();
        Recipe::load(&path.to_string_lossy(), &[])
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

/// The keys that differ between the settings a run was started with and those it is to go on
/// with, leaving out the ones that do not touch what was computed so far.
pub(crate) fn conflicts(started: &Recipe, now: &Recipe) -> Result<Vec<String>> {
    const FREE: [&str; 6] = [
        "train.epochs",
        "train.steps",
        "log.",
        "checkpoint.",
        "loader.",
        "eval.",
    ];
    differences(started, now, |key| {
        !FREE.iter().any(|free| key.starts_with(free))
    })
}

/// The keys that differ, of those that matter.
pub(crate) fn differences(
    started: &Recipe,
    now: &Recipe,
    matters: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let (started, now) = (started.flat()?, now.flat()?);
    Ok(started
        .into_iter()
        .zip(now)
        .filter(|((key, old), (_, new))| old != new && matters(key))
        .map(|((key, old), (_, new))| format!("{key} = {old}, now {new}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_or_absent_folder_is_free() {
        let folder = tempfile::tempdir().unwrap();
        RunDir::check_free(folder.path()).unwrap();
        RunDir::check_free(&folder.path().join("new")).unwrap();
        fs::write(folder.path().join("note"), "").unwrap();
        let error = format!("{:#}", RunDir::check_free(folder.path()).unwrap_err());
        assert!(error.contains("--resume"), "{error}");
        assert!(RunDir::check_free(&folder.path().join("note")).is_err());
    }

    #[test]
    fn conflicts_are_the_keys_that_change_the_run() {
        let load = |settings: &[&str]| {
            let settings: Vec<_> = settings.iter().map(|s| s.parse().unwrap()).collect();
            Recipe::load("fashion-mnist", &settings).unwrap()
        };
        let free = load(&[
            "train.epochs=99",
            "log.every=3",
            "loader.workers=7",
            "eval.knn.k=3",
        ]);
        assert!(conflicts(&load(&[]), &free).unwrap().is_empty());
        let found = conflicts(
            &load(&["optim.lr=0.5"]),
            &load(&["optim.lr=0.25", "log.every=3"]),
        );
        assert_eq!(found.unwrap(), ["optim.lr = 0.5, now 0.25"]);
    }
}
