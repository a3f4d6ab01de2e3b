//! Checkpoints: folders that are whole or absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pirl_core::file;
use pirl_model::LossScale;
use serde::{Deserialize, Serialize};

use crate::error::{BoxError, Result, TrainError};
use crate::identity::Identity;

/// Weights and statistics of the networks.
pub const MODEL: &str = "model.safetensors";
/// The backbone alone, as it is to be evaluated and exported: in the last checkpoint of a finished run
/// whose batch-norm statistics were computed anew. Resuming does not read it.
pub const BACKBONE: &str = "backbone.safetensors";
/// Momentum of the optimiser.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Rows of the memory bank; absent without one.
pub(crate) const BANK: &str = "bank.safetensors";
const STATE: &str = "state.json";
const FORMAT: u32 = 1;

/// The folder of the run that a checkpoint's file lies in: RUN of RUN/checkpoints/step-N/model.safetensors.
pub fn run_of(file: &Path) -> Option<&Path> {
    let (checkpoint, checkpoints) = (file.parent()?, file.parent()?.parent()?);
    let named =
        |path: &Path, start: &str| path.file_name()?.to_str()?.strip_prefix(start).map(drop);
    named(checkpoint, "step-").and(named(checkpoints, "checkpoints"))?;
    checkpoints.parent()
}

/// What a checkpoint holds beside its tensors. All randomness of a run derives from its seed and
/// the step, so that these two are its generators' state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Steps done.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    seed: u64,
    images: usize,
    fingerprint: String,
    /// What the loss has estimated: NCE fixes the logarithm of its Z at the first step.
    pub loss: Option<f64>,
    /// Ranks that took the steps; 1 where it is not said.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// How the loss is scaled, in half precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

impl State {
    fn new(step: u64, epoch: u64, identity: &Identity) -> Self {
        Self {
            format: FORMAT,
            step,
            epoch,
            seed: identity.seed,
            images: identity.images,
            fingerprint: identity.fingerprint.clone(),
            loss: None,
            ranks: 1,
            loss_scale: None,
        }
    }

    /// Reads the state of the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Checkpoint`] for a file that is no state, or of another
    /// version's format.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        let text = fs::read(&path).map_err(TrainError::io("read", &path))?;
        let bad = |reason| TrainError::Checkpoint {
            path: path.clone(),
            reason,
        };
        let state: Self = serde_json::from_slice(&text)
            .map_err(|error| bad(format!("it is not the state of a checkpoint: {error}")))?;
        if state.format != FORMAT {
            let found = state.format;
            return Err(bad(format!(
                "it has format {found}; this program reads format {FORMAT}"
            )));
        }
        Ok(state)
    }

    /// Which training it is of.
    pub fn identity(&self) -> Identity {
        Identity {
            images: self.images,
            fingerprint: self.fingerprint.clone(),
            seed: self.seed,
        }
    }
}

/// The checkpoints of one training, in a folder: `step-00000100`, ...
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    identity: Identity,
}

impl Checkpoints {
    /// Those of the training `identity` in `folder`, which is made when the first is written; the
    /// newest `keep` are kept.
    pub fn new(folder: impl Into<PathBuf>, keep: usize, identity: Identity) -> Self {
        Self {
            folder: folder.into(),
            keep,
            identity,
        }
    }

    /// The training they are of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The newest checkpoint in `folder`, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed.
    pub fn newest_in(folder: &Path) -> Result<Option<PathBuf>> {
        Ok(all(folder)?.pop().map(|(_, path)| path))
    }

    /// The newest checkpoint, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed.
    pub fn newest(&self) -> Result<Option<PathBuf>> {
        Self::newest_in(&self.folder)
    }

    /// Writes the checkpoint of `step`; `save` puts the tensors into the folder it is given, and adds
    /// to the state. Older ones than are kept are removed.
    ///
    /// # Errors
    /// [`TrainError::NotSaved`]: earlier checkpoints are as they were and nothing of this one is left.
    pub fn write<E: Into<BoxError>>(
        &self,
        step: u64,
        epoch: u64,
        save: impl FnOnce(&Path, &mut State) -> std::result::Result<(), E>,
    ) -> Result<PathBuf> {
        let target = self.path(step);
        if self.has(step) {
            return Ok(target); // the step was saved a moment ago, or before this process began
        }
        let write = || -> std::result::Result<(), BoxError> {
            fs::create_dir_all(&self.folder).map_err(TrainError::io("make", &self.folder))?;
            let mut state = State::new(step, epoch, &self.identity);
            file::write_folder(&target, |aside| -> std::result::Result<(), Failure> {
                save(aside, &mut state).map_err(|error| Failure(error.into()))?;
                let text = serde_json::to_vec_pretty(&state).map_err(io::Error::other)?;
                Ok(fs::write(aside.join(STATE), text)?)
            })
            .map_err(|failure| failure.0)
        };
        write().map_err(|source| TrainError::NotSaved {
            step,
            earlier: self.newest().ok().flatten(),
            source,
        })?;
        self.prune()?;
        Ok(target)
    }

    /// Whether there is a checkpoint of `step`.
    pub fn has(&self, step: u64) -> bool {
        self.path(step).exists()
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    fn prune(&self) -> Result<()> {
        let all = all(&self.folder)?;
        let excess = all.len().saturating_sub(self.keep);
        for (_, path) in all.into_iter().take(excess) {
            fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
        }
        // What a killed process left of an unfinished one.
        for (name, path) in entries(&self.folder)? {
            if file::is_unfinished(&name) {
                fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// An error of writing, whatever it is.
struct Failure(BoxError);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(error.into())
    }
}

/// All checkpoints by step, the oldest first.
fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<_> = entries(folder)?
        .into_iter()
        .filter_map(|(name, path)| Some((name.strip_prefix("step-")?.parse().ok()?, path)))
        .collect();
    found.sort();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let list = || -> io::Result<Vec<(String, PathBuf)>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                Ok((name, entry.path()))
            })
            .collect()
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(TrainError::io("list", folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoints(folder: &Path, keep: usize) -> Checkpoints {
        let identity = Identity {
            images: 10,
            fingerprint: "abc".to_owned(),
            seed: 1,
        };
        Checkpoints::new(folder, keep, identity)
    }

    fn write(checkpoints: &Checkpoints, step: u64) -> Result<PathBuf> {
        checkpoints.write(step, 0, |folder, state| {
            state.loss = Some(0.1 + 1.0 / 3.0);
            fs::write(folder.join(MODEL), step.to_string())
        })
    }

    #[test]
    fn the_newest_are_kept_and_the_state_comes_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(&folder.path().join("checkpoints"), 2);
        assert!(checkpoints.newest().unwrap().is_none());
        for step in [9, 10, 100] {
            write(&checkpoints, step).unwrap();
        }
        let newest = checkpoints.newest().unwrap().unwrap();
        assert_eq!(newest.file_name().unwrap(), "step-00000100");
        let state = State::read(&newest).unwrap();
        assert_eq!((state.step, state.loss), (100, Some(0.1 + 1.0 / 3.0)));
        assert_eq!(state.identity(), *checkpoints.identity());
        let all = all(&folder.path().join("checkpoints")).unwrap();
        let steps: Vec<u64> = all.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [10, 100]);
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(folder.path(), 1);
        let earlier = write(&checkpoints, 1).unwrap();
        let error = checkpoints
            .write(2, 0, |folder, _| -> io::Result<()> {
                fs::write(folder.join(MODEL), "half")?;
                Err(io::Error::other("no space left on device"))
            })
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("step 2") && text.contains("no space"),
            "{text}"
        );
        let TrainError::NotSaved { earlier: found, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(found, Some(earlier.clone()));
        assert_eq!(fs::read(earlier.join(MODEL)).unwrap(), b"1");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_neither_read_nor_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".unfinished-x")).unwrap();
        let checkpoints = checkpoints(folder.path(), 1);
        assert!(checkpoints.newest().unwrap().is_none());
        write(&checkpoints, 1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
