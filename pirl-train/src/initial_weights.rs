//! Which weights a training began with, when they are not random.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::identity::Identity;
use crate::record;

const FILE: &str = "initial_weights.json";

/// The file of weights that the backbone of a training was filled from before its first step.
///
/// It is kept in the folder of the run, `initial_weights.json`: a resumed run need not be told, and is
/// refused other weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitialWeights {
    /// The file.
    pub path: PathBuf,
    /// Fingerprint of the backbone's weights and statistics in it.
    pub fingerprint: String,
}

impl InitialWeights {
    /// What the run in `folder` began with; `None` if with random weights, or if there is no run.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Checkpoint`] for a damaged file.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        record::read(folder, FILE, "which weights the run began with")
    }

    /// Keeps it in `folder`, which must exist.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        record::write(folder, FILE, self)
    }

    /// An error unless the run in `folder` began with these weights, wherever they lay.
    ///
    /// # Errors
    /// [`TrainError::OtherInitialWeights`]; as [`InitialWeights::read`].
    pub fn ensure_of(&self, folder: &Path) -> Result<()> {
        let found = Self::read(folder)?;
        if found.as_ref().map(|found| &found.fingerprint) == Some(&self.fingerprint) {
            return Ok(());
        }
        Err(TrainError::OtherInitialWeights {
            folder: folder.to_owned(),
            found: found.map_or("random weights".to_owned(), |found| found.to_string()),
            given: self.to_string(),
        })
    }

    /// The identity of a training that is told by `identity` but for its initial weights.
    pub fn identity(&self, identity: Identity) -> Identity {
        Identity {
            fingerprint: format!(
                "images {}, initial weights {}",
                identity.fingerprint, self.fingerprint
            ),
            ..identity
        }
    }
}

impl std::fmt::Display for InitialWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, fingerprint } = self;
        write!(f, "{} (fingerprint {fingerprint})", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_with_its_own_weights_alone() {
        let folder = tempfile::tempdir().unwrap();
        let weights = |path: &str, fingerprint: &str| InitialWeights {
            path: path.into(),
            fingerprint: fingerprint.to_owned(),
        };
        let own = weights("a.pth", "1f");
        assert_eq!(InitialWeights::read(folder.path()).unwrap(), None);
        let error = own.ensure_of(folder.path()).unwrap_err().to_string();
        assert!(error.contains("random weights"), "{error}");
        own.write(folder.path()).unwrap();
        assert_eq!(InitialWeights::read(folder.path()).unwrap(), Some(own));
        weights("moved.pth", "1f").ensure_of(folder.path()).unwrap();
        let error = weights("b.pth", "2e").ensure_of(folder.path());
        let error = error.unwrap_err().to_string();
        for part in ["a.pth", "1f", "b.pth", "2e"] {
            assert!(error.contains(part), "{error}");
        }
        std::fs::write(folder.path().join(FILE), "{}").unwrap();
        let error = InitialWeights::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
