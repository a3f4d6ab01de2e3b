//! Pictures and pages of results: what a run did, what a detector found, what a network takes for alike.
//!
//! - [`Chart`]: curves between two axes, as SVG or as an image.
//! - [`RunReport`]: the charts, results, [pictures](Picture) and settings of a run on one HTML page that needs
//!   nothing else.
//! - [`StudyReport`]: the figures, tables and findings of a study, likewise.
//! - [`EventFile`]: the same numbers for TensorBoard; [`RunLog`]: all that is logged of a run.
//! - [`preview_sheet`]: images as training sees them, with where their views were cut.
//! - [`ClassesReport`]: what a classifier takes for what, class by class, and its calibration.
//! - [`detection_sheet`] and [`precision_recall_chart`]: what a detector found, and how often it was right.
//! - [`MapPages`]: a map of images, with outliers and near duplicates; [`Look`]: the like for the page of a run.
//! - [`neighbour_sheet`]: images beside those whose features are nearest.
//! - [`invariance_charts`], [`invariance_chart`] and [`invariance_table`]: how far changes of an image move its features.
//! - [`ModelCard`]: the page that goes with exported weights, in Markdown.
//! - [`png`]: an image as the bytes of a file; [`write_png`] writes it.
//!
//! Nothing else depends on this crate, and it draws nothing by itself: it is given numbers and images, and
//! returns pictures. Words are in Noto Sans, which is part of the program.
//!
//! ```
//! use pirl_report::{Chart, RunReport, Series};
//!
//! let loss = (1..=50).map(|step| (f64::from(step), 6.0 / f64::from(step).sqrt()));
//! let report = RunReport {
//!     title: "runs/photos",
//!     facts: vec![("last step".to_owned(), "50".to_owned())],
//!     charts: vec![Chart::new("Loss", "step", "nats").series(Series::new("total", loss))],
//!     settings: "seed = 0",
//!     ..RunReport::default()
//! };
//! let page = report.to_html()?;
//! assert!(page.contains("<polyline") && page.contains("seed = 0"));
//! # Ok::<(), pirl_report::ReportError>(())
//! ```

mod canvas;
mod chart;
mod classes_report;
mod detection;
mod error;
mod file;
mod font;
mod invariance;
mod look;
mod map_pages;
mod map_report;
mod model_card;
mod neighbours;
mod page;
mod pen;
mod png;
mod preview;
mod raster;
mod run_log;
mod run_metrics;
mod run_report;
mod series;
mod sheet;
mod study_report;
mod tensorboard;
mod ticks;

pub use chart::Chart;
pub use classes_report::ClassesReport;
pub use detection::{DetectionPanel, detection_sheet, precision_recall_chart, write_detections};
pub use error::{ReportError, Result};
pub use file::write_png;
pub use invariance::{invariance_chart, invariance_charts, invariance_table};
pub use look::Look;
pub use map_pages::{MapPages, MapSummary};
pub use map_report::{Layout, MapReport};
pub use model_card::{CardResult, ModelCard};
pub use neighbours::neighbour_sheet;
pub use png::png;
pub use preview::preview_sheet;
pub use run_log::RunLog;
pub use run_report::{Picture, RunReport};
pub use series::Series;
pub use study_report::{FigureReport, FindingReport, StudyReport, Table, TableCell};
pub use tensorboard::EventFile;
