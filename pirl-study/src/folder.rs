//! The folder of a study.

use std::fs;
use std::path::{Path, PathBuf};

use pirl_core::file;
use serde_json::{Value, json};

use crate::error::{Result, StudyError, at};
use crate::plan::{Run, Task};

const IDENTITY: &str = "study.txt";
const PLAN: &str = "plan.json";

/// `study.txt`, which says what study it is of; `runs/`, a folder for each run; and what comes of them.
#[derive(Clone, Debug)]
pub struct StudyFolder {
    path: PathBuf,
}

impl StudyFolder {
    /// The folder at `path`: a new one, or that of a study of this [`identity`](crate::Plan::identity).
    /// Nothing is written.
    ///
    /// # Errors
    /// [`StudyError::OtherStudy`] with the first difference, [`StudyError::NotAStudy`] if there is
    /// something else.
    pub fn check(path: &Path, identity: &str) -> Result<Self> {
        let folder = Self {
            path: path.to_owned(),
        };
        if let Some(known) = folder.identity()? {
            if let Some(difference) = difference(&known, identity) {
                return Err(StudyError::OtherStudy {
                    folder: folder.path,
                    difference,
                });
            }
            return Ok(folder);
        }
        match fs::read_dir(path) {
            Ok(mut entries) => match entries.next() {
                Some(_) => Err(StudyError::NotAStudy {
                    folder: folder.path,
                }),
                None => Ok(folder),
            },
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
            _ => Ok(folder),
        }
    }

    /// What a study that was begun at `path` is; `None` where there is none.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn identity(&self) -> Result<Option<String>> {
        let path = self.path.join(IDENTITY);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// The epochs that [`StudyFolder::keep_epochs`] kept of the study at `path`; `None` where there are none.
    ///
    /// # Errors
    /// [`StudyError::Io`]; [`StudyError::Damaged`] for a file that is not as it was written.
    pub fn epochs(path: &Path) -> Result<Option<usize>> {
        let path = path.join(PLAN);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(at(&path))?;
        let plan: Value = serde_json::from_slice(&text).map_err(|source| StudyError::Damaged {
            path,
            reason: source.to_string(),
        })?;
        Ok(plan["epochs"].as_u64().map(|epochs| epochs as usize))
    }

    /// Keeps how many epochs fit into a time, for when the study goes on.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn keep_epochs(&self, epochs: usize) -> Result<()> {
        self.write(PLAN, json!({ "epochs": epochs }).to_string().as_bytes())
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn begin(&self, identity: &str) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(at(&self.path))?;
        self.write(IDENTITY, identity.as_bytes())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a run.
    pub fn run(&self, run: &Run) -> PathBuf {
        self.path.join("runs").join(&run.key)
    }

    /// The run itself, as `pirl pretrain --out` makes it.
    pub fn network(&self, run: &Run) -> PathBuf {
        self.run(run).join("network")
    }

    /// What is there once the run is trained.
    pub fn trained(&self, run: &Run) -> PathBuf {
        self.run(run).join("pretrain.json")
    }

    /// The result of an evaluation.
    pub fn result(&self, run: &Run, task: &Task) -> PathBuf {
        self.run(run).join(&task.folder).join("result.json")
    }

    /// Features that the evaluations of a run share while they are made.
    pub fn features(&self, run: &Run) -> PathBuf {
        self.run(run).join("features")
    }

    /// Whether all of a run is there.
    pub fn is_done(&self, run: &Run) -> bool {
        let trained = !run.trained || self.trained(run).is_file();
        let cleared = !self.features(run).exists();
        trained
            && cleared
            && run
                .tasks
                .iter()
                .all(|task| self.result(run, task).is_file())
    }

    /// The number at `pointer` in the result of an evaluation; `None` where there is no result yet.
    ///
    /// # Errors
    /// [`StudyError::Outcome`] if there is a result without that number.
    pub fn value(&self, run: &Run, task: &Task, pointer: &str) -> Result<Option<f64>> {
        let path = self.result(run, task);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path)(error)),
        };
        let wrong = |reason: String| StudyError::Outcome {
            path: path.clone(),
            reason,
        };
        let result: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        match result.pointer(pointer) {
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(Value::Null) => Ok(None),
            _ => Err(wrong(format!("there is no number at {pointer}"))),
        }
    }

    /// Writes a file of the study, whole or not at all, with the folders that it is in.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        file::write(&path, bytes).map_err(at(&path))
    }
}

/// The first line in which two identities differ, in words.
fn difference(known: &str, now: &str) -> Option<String> {
    let (mut known, mut now) = (known.lines(), now.lines());
    loop {
        match (known.next(), now.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (a, b) => {
                let word = |line: Option<&str>| match line {
                    Some(line) => format!("{line:?}"),
                    None => "nothing more".to_owned(),
                };
                return Some(format!("there {}, now {}", word(a), word(b)));
            }
        }
    }
}
