//! `report.html`: the curves of a run and its settings, from what its folder keeps.

use anyhow::{Context, Result};
use pirl_report::RunReport;
use pirl_train::MetricsFile;

use crate::output::write_file;
use crate::run_dir::RunDir;

/// Writes the report of a run.
pub(crate) fn write(folder: &RunDir) -> Result<()> {
    let rows = MetricsFile::read(&folder.metrics())?;
    let config = std::fs::read_to_string(folder.config())
        .with_context(|| format!("cannot read {}", folder.config().display()))?;
    let title = folder.path().display().to_string();
    let report = RunReport::from_metrics(&title, &rows, &config);
    write_file(&folder.report(), report.to_html()?.as_bytes())
}
