//! Studies: many trainings that differ in a few settings, made once each, several at a time, and compared.
//!
//! - A [`Study`] says which: a recipe, seeds, figures with series and an axis, what is measured, what was
//!   published, what is expected. [`Study::load`] takes a built-in one by its name ([`builtin_names`]) or a
//!   file.
//! - A [`Plan`] has every [`Run`] of it once, whatever number of figures it is in, checked against the
//!   [`Images`]. [`Estimate`] says how long they take and what room they need, by a trial of each kind.
//! - A [`StudyFolder`] keeps the runs by a hash of all that they depend on. [`conduct`] makes those that are
//!   missing by a [`Launcher`], which carries out a [`Stage`]; [`Processes`] does so by the program `pirl`.
//!   That a process was killed loses no more than the stages it was at, and these go on from their
//!   checkpoints.
//! - An [`Outcome`] has the values, their means and deviations over the seeds, and a [`Verdict`] on each
//!   finding; [`write_report`] writes the page, tables and JSON.
//!
//! ```
//! use pirl_study::Study;
//!
//! let study = Study::load("lambda")?;
//! let axis = study.figures[0].x.as_ref().expect("it has one");
//! assert_eq!(axis.key.as_deref(), Some("loss.lambda"));
//! // The same at the paper's scale and length.
//! let study = study.with_recipe("imagenet-resnet50-jigsaw");
//! assert!(study.budget.is_empty());
//! # Ok::<(), pirl_study::StudyError>(())
//! ```

mod builtin;
mod conduct;
mod config;
mod cost;
mod error;
mod folder;
mod listing;
mod outcome;
mod plan;
mod processes;
mod report;

pub use builtin::names as builtin_names;
pub use conduct::{Conducted, Event, Launcher, Stage, conduct};
pub use config::{
    At, Axis, Figure, Finding, Measure, Place, PublishedSeries, Series, Study, Weights,
};
pub use cost::{Cost, Estimate};
pub use error::{Result, StudyError};
pub use folder::StudyFolder;
pub use listing::list_runs;
pub use outcome::{Cell, FigureOutcome, MeasureOutcome, Measured, Outcome, SeriesOutcome, Verdict};
pub use plan::{Evaluation, Images, NamedPack, Plan, Point, Run, Task};
pub use processes::Processes;
pub use report::write_report;
