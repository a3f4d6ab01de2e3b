//! The packed format: a data set as one file, or a few, that is memory-mapped and never unpacked.

mod counts;
mod deflate;
mod describe;
mod jpeg;
mod open_shard;
mod options;
mod partial;
mod png;
mod prepare;
mod reader;
mod recode;
mod report;
mod run;
mod schema;
mod shard;
mod statistics;
mod verify;
mod writer;

pub use counts::{Counts, ObjectCounts, PerClass};
pub use options::{Depth, PackOptions, Reencode};
pub use reader::Pack;
pub(crate) use report::listed;
pub use report::{PackReport, Skipped, Tally};
pub use run::pack;
pub use statistics::{ImageStatistics, Sides};
pub use verify::Verification;
