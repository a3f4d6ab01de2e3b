//! A packing under way: complete shards and how far they reach, in a folder beside the output.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Skipped, Tally};
use crate::DataError;

const STATE: &str = "state.json";

/// `NAME.partial`. It is gone when dropped, unless it holds something to go on from.
#[derive(Debug)]
pub(super) struct Partial {
    folder: PathBuf,
    /// Held while this process packs.
    _lock: File,
    keep: bool,
}

/// How far the complete shards reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Source and options; a packing that resumes must have the same.
    pub(super) work: String,
    /// Complete shards.
    pub(super) shards: u64,
    /// Samples of the source that they deal with, packed or skipped.
    pub(super) done: usize,
    /// What those samples and the classes were, to notice that the source has changed.
    pub(super) stamp: String,
    /// What was left out of them.
    pub(super) skipped: Vec<Skipped>,
    /// What was changed in them.
    pub(super) notes: Vec<Skipped>,
    /// What was counted.
    pub(super) tally: Tally,
}

impl Partial {
    /// Makes the folder of the pack `stem`, or takes over what an interrupted packing left there.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shards`] if another process is packing there, or the folder is of
    /// another source or other options than `work` says.
    pub(super) fn open(stem: &Path, work: &str) -> Result<(Self, Option<State>), DataError> {
        let mut folder = stem.as_os_str().to_owned();
        folder.push(".partial");
        let folder = PathBuf::from(folder);
        let wrong = |reason| DataError::Shards {
            path: folder.clone(),
            reason,
        };
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(DataError::io("write", &folder)(error));
            }
            _ => {}
        }
        let lock = File::create(folder.join("lock")).map_err(DataError::io("write", &folder))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(wrong("another process is packing here".to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(DataError::io("lock", &folder)(error)),
        }
        let mut partial = Self {
            keep: false,
            _lock: lock,
            folder: folder.clone(),
        };
        let state = partial.state_file();
        let state: State = match fs::read(&state) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((partial, None)),
            Err(error) => {
                partial.keep = true;
                return Err(DataError::io("read", state)(error));
            }
            Ok(bytes) => {
                partial.keep = true;
                serde_json::from_slice(&bytes).map_err(|error| {
                    wrong(format!(
                        "its {STATE} is damaged ({error}); remove this folder to begin anew"
                    ))
                })?
            }
        };
        if state.work != work {
            return Err(wrong(format!(
                "it holds {} images of an interrupted packing of other work; go on with that, or \
                 remove this folder to begin anew. There: {}. Now: {work}",
                state.done, state.work
            )));
        }
        Ok((partial, Some(state)))
    }

    /// The file of shard `number`.
    pub(super) fn shard(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:05}.safetensors"))
    }

    /// Notes that the shards of `state` are complete and on the disk.
    pub(super) fn save(&mut self, state: &State) -> Result<(), DataError> {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            serde_json::to_writer(&mut file, state)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(self.state_file())
                .map_err(|error| error.error)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(DataError::io("write", self.state_file()))?;
        self.keep = true;
        Ok(())
    }

    /// The work is done: the folder goes.
    pub(super) fn finish(mut self) {
        self.keep = false;
    }

    fn state_file(&self) -> PathBuf {
        self.folder.join(STATE)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed does no harm: the next packing begins by removing it.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
