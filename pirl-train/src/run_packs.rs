//! Which packs a run is made of.

use std::path::{Path, PathBuf, absolute};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record;

const FILE: &str = "packs.json";

/// The packs of a run. They are kept in its folder, `packs.json`: a resumed run need not be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPacks {
    /// Images to learn from; `{rank}` stands for the number of the rank.
    pub data: PathBuf,
    /// Labelled images to measure nearest neighbours on during the run: those whose labels are known, and
    /// those whose labels they are to tell.
    pub probes: Option<[PathBuf; 2]>,
}

impl RunPacks {
    /// Those of the run in `folder`; `None` if there is no run, or one of a version that did not keep them.
    ///
    /// # Errors
    /// [`TrainError::Io`](crate::TrainError::Io); [`TrainError::Checkpoint`](crate::TrainError::Checkpoint) for
    /// a damaged file.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        record::read(folder, FILE, "which packs the run is made of")
    }

    /// Keeps them in `folder`, which must exist, by their absolute paths.
    ///
    /// # Errors
    /// [`TrainError::Io`](crate::TrainError::Io).
    pub fn write(&self, folder: &Path) -> Result<()> {
        let whole = |path: &PathBuf| absolute(path).unwrap_or_else(|_| path.clone());
        let packs = Self {
            data: whole(&self.data),
            probes: self
                .probes
                .as_ref()
                .map(|probes| probes.each_ref().map(whole)),
        };
        record::write(folder, FILE, &packs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_knows_its_packs() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunPacks::read(folder.path()).unwrap(), None);
        let mut packs = RunPacks {
            data: "/packs/part-{rank}".into(),
            probes: None,
        };
        packs.write(folder.path()).unwrap();
        assert_eq!(RunPacks::read(folder.path()).unwrap(), Some(packs.clone()));
        packs.probes = Some(["train".into(), "/packs/test".into()]);
        packs.write(folder.path()).unwrap();
        let [train, test] = RunPacks::read(folder.path())
            .unwrap()
            .unwrap()
            .probes
            .unwrap();
        assert!(train.is_absolute() && train.ends_with("train"), "{train:?}");
        assert_eq!(test, Path::new("/packs/test"));
        std::fs::write(folder.path().join(FILE), "[]").unwrap();
        let error = RunPacks::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
