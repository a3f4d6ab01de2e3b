use std::io;
use std::path::PathBuf;

use pirl_core::SettingError;
use pirl_data::DataError;

/// What can go wrong while scenes are composed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SceneError {
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// An image of the pack cannot be decoded or resized.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The pack has no labels, so its items have no class.
    #[error(
        "{path}: the images have no labels, and an object needs a class; pack class sub-folders, or a list \
         with labels"
    )]
    Unlabelled {
        /// The pack.
        path: PathBuf,
    },
    /// The image set was written before.
    #[error("{path} is there already; choose another split or another folder")]
    Exists {
        /// The list of its scenes.
        path: PathBuf,
    },
    /// The folder holds scenes of other classes.
    #[error("{path}: the scenes there are of other classes; choose another folder")]
    OtherClasses {
        /// The list of its classes.
        path: PathBuf,
    },
    /// The operating system refused to write a file or folder.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: "make", "encode", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl SceneError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
