//! The packed format: a data set as one file, or a few, that is memory-mapped and never unpacked.

mod counts;
mod open_shard;
mod options;
mod partial;
mod prepare;
mod reader;
mod recode;
mod run;
mod schema;
mod shard;
mod statistics;
mod verify;
mod writer;

pub use counts::{Counts, ObjectCounts, PerClass};
pub use options::{PackOptions, PackReport, Skipped};
pub use reader::Pack;
pub use run::pack;
pub use statistics::ImageStatistics;
pub use verify::Verification;

/// Makes a file readable by everyone, as far as its folder permits; temporary files are created readable
/// by their owner only.
#[cfg(unix)]
pub(crate) fn allow_reading(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
pub(crate) fn allow_reading(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}
