use std::io;
use std::path::PathBuf;

use pirl_core::SettingError;

/// An error of reading, packing or loading images.
///
/// Each message names the file, the record or the setting at fault, and what was expected of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: "read", "write", "list".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A source holds no image, or none that decodes.
    #[error("{path}: no images here ({expected})")]
    Empty {
        /// The folder, list or pack.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// A pack is not as it was packed.
    #[error("{path} is damaged; pack its images again:\n  {}", .faults.join("\n  "))]
    Damaged {
        /// Its first shard.
        path: PathBuf,
        /// What is wrong, a line each.
        faults: Vec<String>,
    },
    /// Everything a source holds was left out.
    #[error("{path}: nothing to pack; {}", crate::pack::listed(.skipped))]
    Nothing {
        /// The source, or the pack that was to be.
        path: PathBuf,
        /// What was left out, and why.
        skipped: Vec<crate::Skipped>,
    },
    /// Images lie beside sub-folders of images, so that these may be classes or not.
    #[error(
        "{path}: {count} images, {first} the first, lie beside sub-folders of images; move them, or say \
         --labels folders (the sub-folders are classes, these images are left out) or --labels none \
         (no image has a label)"
    )]
    Stray {
        /// The folder.
        path: PathBuf,
        /// Images beside the sub-folders.
        count: usize,
        /// One of them.
        first: String,
    },
    /// A line of a list file is wrong.
    #[error("{path}, line {line}: {reason}")]
    List {
        /// The list file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not what its format asks for.
    #[error("{path} is not a valid {format} file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// A label lies outside the list of classes.
    #[error("{path}: sample {index} has label {label}, but there are {classes} classes")]
    Label {
        /// The file.
        path: PathBuf,
        /// The sample, counted from 0 in that file.
        index: usize,
        /// Its label.
        label: i64,
        /// Labels allowed are `0..classes`.
        classes: usize,
    },
    /// A pack has samples of classes that another one lacks.
    #[error(
        "{path}: the class{} {} {} not among the {known} of the other pack",
        if .unknown.len() == 1 { "" } else { "es" },
        .unknown.join(", "),
        if .unknown.len() == 1 { "is" } else { "are" }
    )]
    UnknownClasses {
        /// The pack.
        path: PathBuf,
        /// Their names.
        unknown: Vec<String>,
        /// How many classes the other pack has.
        known: usize,
    },
    /// A set of shards does not belong together.
    #[error("{path}: {reason}")]
    Shards {
        /// The shard, or the stem of the set.
        path: PathBuf,
        /// What is inconsistent.
        reason: String,
    },
    /// An image cannot be decoded.
    #[error("cannot decode {name}: {reason}")]
    Decode {
        /// The image: its path in the source, or its number in the pack.
        name: String,
        /// What the decoder found.
        reason: String,
    },
    /// An annotation is broken, and packing is strict.
    #[error("{name}: {reason}")]
    Annotation {
        /// The annotation or the image, and the object in it.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The number of bytes does not fit the size of the image.
    #[error(
        "an image of {width} x {height} pixels of {channels} channels cannot have {found} bytes"
    )]
    ImageSize {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Values of a pixel; an image has 1 to 16.
        channels: usize,
        /// Bytes given.
        found: usize,
    },
    /// Images have another number of channels than the settings.
    #[error(
        "the images have {found} channel{}, the settings are for {expected}: channels, mean and std must be \
         theirs, as `pirl data stats PACK` prints them for a recipe",
        if *.found == 1 { "" } else { "s" }
    )]
    Channels {
        /// Those of the settings.
        expected: usize,
        /// Those of the images.
        found: usize,
    },
    /// A sample that does not exist was asked for.
    #[error("sample {index} of {len}")]
    Index {
        /// The sample asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// A sample of a pack whose shards are spread over machines was asked for where it is not.
    #[error("sample {index} is in {path}, which is not on this machine")]
    Elsewhere {
        /// The sample.
        index: usize,
        /// Its shard.
        path: PathBuf,
    },
    /// Another process did not say which shards it has.
    #[error(transparent)]
    Exchange(Box<dyn std::error::Error + Send + Sync>),
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The user asked to stop.
    #[error("stopped while {doing}, after {done} of {total}")]
    Stopped {
        /// What was under way.
        doing: &'static str,
        /// Samples done.
        done: usize,
        /// Samples in all.
        total: usize,
    },
    /// A data set is neither installed here nor could be downloaded.
    #[error("{name} is not here: {reason}")]
    Fetch {
        /// The data set.
        name: &'static str,
        /// How to get it.
        reason: String,
    },
    /// A part of an image cannot be cut out and resized.
    #[error("cannot resize {crop:?} of a {image:?} image to {size:?}: {reason}")]
    Crop {
        /// The part.
        crop: crate::transform::Crop,
        /// Width and height of the image.
        image: (usize, usize),
        /// Width and height asked for.
        size: (usize, usize),
        /// Why not.
        reason: String,
    },
    /// The slice for a view has the wrong length.
    #[error("a view has {expected} numbers, but the slice for it {found}")]
    Output {
        /// Numbers of the view.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },
    /// A thread of the loader failed.
    #[error("the loader failed{}: {reason}", .index.map(|index| format!(" at sample {index}")).unwrap_or_default())]
    Worker {
        /// The sample it was working on.
        index: Option<usize>,
        /// What went wrong: the message of a panic, or of the system.
        reason: String,
    },
    /// Building a batch's tensor failed.
    #[error("cannot make a batch: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl DataError {
    pub(crate) fn nothing(path: impl Into<PathBuf>, skipped: &[crate::Skipped]) -> Self {
        Self::Nothing {
            path: path.into(),
            skipped: skipped.to_vec(),
        }
    }

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
