//! Why a device could not be examined.

use pirl_data::DataError;
use pirl_train::BoxError;

/// Anything that can go wrong outside the checks themselves, whose failures a [`Report`](crate::Report)
/// lists.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// The folder for temporary files, `TMPDIR` or `/tmp`, cannot be written to.
    #[error(
        "cannot make a temporary folder for generated images; set TMPDIR to a folder that can be written to"
    )]
    Folder(#[source] std::io::Error),

    /// The encoder refuses an image.
    #[error("encoding a generated photograph as JPEG")]
    Jpeg(#[source] image::ImageError),

    /// What happened to the first batch size.
    #[error("not one of the batch sizes ran: {0}")]
    NoStep(String),

    /// [`Workload::loader`](crate::Workload::loader) failed.
    #[error("making the loader")]
    Loader(#[source] BoxError),

    /// The generated images cannot be packed or loaded.
    #[error(transparent)]
    Data(#[from] DataError),
}
