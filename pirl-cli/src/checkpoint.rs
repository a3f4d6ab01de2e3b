//! Checkpoints: folders that are whole or absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pirl_model::LossScale;
use serde::{Deserialize, Serialize};

use crate::files;

/// Weights and buffers of the backbone and the heads.
pub(crate) const MODEL: &str = "model.safetensors";
/// Momentum of the optimiser.
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
/// Rows of the memory bank; absent without one.
pub(crate) const BANK: &str = "bank.safetensors";
const STATE: &str = "state.json";
const FORMAT: u32 = 1;

/// What a checkpoint holds beside its tensors. All randomness of a run derives from its seed and
/// the step, so that these two are its generators' state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Epochs finished.
    pub(crate) epoch: u64,
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Images trained on.
    pub(crate) images: usize,
    /// Fingerprint of those images.
    pub(crate) fingerprint: String,
    /// What the loss has learnt: `loss.kind = nce` fixes the logarithm of its Z at the first step.
    pub(crate) loss: Option<f64>,
    /// How the loss is scaled, with `train.precision = f16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<LossScale>,
}

impl State {
    pub(crate) fn new(
        step: u64,
        epoch: u64,
        seed: u64,
        images: usize,
        fingerprint: &str,
        loss: Option<f64>,
    ) -> Self {
        Self {
            format: FORMAT,
            step,
            epoch,
            seed,
            images,
            fingerprint: fingerprint.to_owned(),
            loss,
            loss_scale: None,
        }
    }

    /// Reads the state of the checkpoint in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let state: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not the state of a checkpoint", path.display()))?;
        ensure!(
            state.format == FORMAT,
            "{} has format {}; this program reads format {FORMAT}",
            path.display(),
            state.format
        );
        Ok(state)
    }
}

/// The `checkpoints` folder of a run.
pub(crate) struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// `keep` newest are kept.
    pub(crate) fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep }
    }

    /// The newest checkpoint, if there is one.
    pub(crate) fn newest(&self) -> Result<Option<PathBuf>> {
        Ok(self.all()?.pop().map(|(_, path)| path))
    }

    /// Writes the checkpoint of `state.step`; `save` puts the tensors into the folder it is given.
    ///
    /// When anything fails, earlier checkpoints are as they were and nothing of this one is left.
    pub(crate) fn write(
        &self,
        state: &State,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let target = self.folder.join(format!("step-{:08}", state.step));
        if target.exists() {
            return Ok(target); // the step was saved a moment ago, or before this process began
        }
        self.write_to(&target, state, save)
            .with_context(|| self.way_out(state.step))?;
        self.prune()?;
        Ok(target)
    }

    fn write_to(
        &self,
        target: &Path,
        state: &State,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        // Dropped on failure, which removes it with what was written so far.
        let aside = tempfile::Builder::new()
            .prefix(".unfinished-")
            .permissions(everyone_enters())
            .tempdir_in(&self.folder)
            .with_context(|| format!("cannot make a folder in {}", self.folder.display()))?;
        save(aside.path())?;
        let path = aside.path().join(STATE);
        let text = serde_json::to_string_pretty(state).context("writing a checkpoint's state")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        files::sync_contents(aside.path())?;
        fs::rename(aside.path(), target)
            .with_context(|| format!("cannot name the checkpoint {}", target.display()))?;
        let _ = aside.keep(); // the name is gone: nothing to remove
        files::sync_folder(&self.folder)
            .with_context(|| format!("cannot write {} to the disk", self.folder.display()))
    }

    fn way_out(&self, step: u64) -> String {
        let earlier = match self.newest() {
            Ok(Some(path)) => format!(
                "{} is whole: free some space and go on from there with --resume",
                path.display()
            ),
            _ => "there is no earlier one; free some space and start again".to_owned(),
        };
        format!("no checkpoint of step {step} was written ({earlier})")
    }

    fn prune(&self) -> Result<()> {
        let all = self.all()?;
        let excess = all.len().saturating_sub(self.keep);
        for (_, path) in all.into_iter().take(excess) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove old checkpoint {}", path.display()))?;
        }
        // What a killed process left of an unfinished one.
        for (name, path) in self.entries()? {
            if name.starts_with(".unfinished-") {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// All checkpoints by step, the oldest first.
    fn all(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found: Vec<_> = self
            .entries()?
            .into_iter()
            .filter_map(|(name, path)| Some((name.strip_prefix("step-")?.parse().ok()?, path)))
            .collect();
        found.sort();
        Ok(found)
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>> {
        let reading = || format!("cannot list {}", self.folder.display());
        match fs::read_dir(&self.folder) {
            Ok(entries) => entries
                .map(|entry| {
                    let entry = entry.with_context(reading)?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    Ok((name, entry.path()))
                })
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(reading),
        }
    }
}

/// Temporary folders are their owner's alone unless told otherwise; the umask still applies.
fn everyone_enters() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        State::new(step, 0, 1, 10, "abc", Some(0.1 + 1.0 / 3.0))
    }

    fn write(checkpoints: &Checkpoints, step: u64) -> Result<PathBuf> {
        checkpoints.write(&state(step), |folder| {
            fs::write(folder.join(MODEL), step.to_string()).context("model")
        })
    }

    #[test]
    fn the_newest_are_kept_and_the_state_comes_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 2);
        assert!(checkpoints.newest().unwrap().is_none());
        for step in [9, 10, 100] {
            write(&checkpoints, step).unwrap();
        }
        let newest = checkpoints.newest().unwrap().unwrap();
        assert_eq!(newest.file_name().unwrap(), "step-00000100");
        assert_eq!(State::read(&newest).unwrap(), state(100));
        let steps: Vec<u64> = checkpoints.all().unwrap().iter().map(|(s, _)| *s).collect();
        assert_eq!(steps, [10, 100]);
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().to_owned(), 1);
        let earlier = write(&checkpoints, 1).unwrap();
        let error = checkpoints
            .write(&state(2), |folder| {
                fs::write(folder.join(MODEL), "half")?;
                anyhow::bail!("no space left on device")
            })
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("step-00000001 is whole") && error.contains("no space"),
            "{error}"
        );
        assert_eq!(fs::read(earlier.join(MODEL)).unwrap(), b"1");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_neither_read_nor_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".unfinished-x")).unwrap();
        let checkpoints = Checkpoints::new(folder.path().to_owned(), 1);
        assert!(checkpoints.newest().unwrap().is_none());
        write(&checkpoints, 1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
