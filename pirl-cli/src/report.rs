//! `report.html`: the curves of a run and its settings, from what its folder keeps.

use anyhow::{Context, Result};
use pirl_report::{Chart, RunReport, Series};
use serde_json::{Map, Value};

use crate::metrics;
use crate::output::write_file;
use crate::run_dir::RunDir;

/// A line of `metrics.jsonl`.
type Row = Map<String, Value>;

/// Shares of right answers, in percent: the key of each, and what the report calls it.
const ACCURACIES: [(&str, &str); 4] = [
    ("top1", "top-1 of the batch"),
    ("ap", "AP"),
    ("ap50", "AP50"),
    ("ap75", "AP75"),
];

/// Writes the report of a run.
pub(crate) fn write(folder: &RunDir) -> Result<()> {
    let rows = metrics::read(&folder.metrics())?;
    let config = std::fs::read_to_string(folder.config())
        .with_context(|| format!("cannot read {}", folder.config().display()))?;
    let title = folder.path().display().to_string();
    write_file(&folder.report(), html(&title, &rows, &config)?.as_bytes())
}

/// The page of a run called `title`, with the TOML of its settings.
fn html(title: &str, rows: &[Row], config: &str) -> Result<String> {
    let number = |row: &Row, key: &str| row.get(key).and_then(Value::as_f64);
    let series = |name: &str, key: &str| {
        let point = |row| Some((number(row, "step")?, number(row, key)?));
        Series::new(name, rows.iter().filter_map(point))
    };
    let chart = |title: &str, unit: &str| Chart::new(title, "step", unit);
    let mut losses = chart("Loss", "mean of the batch").series(series("total", "loss"));
    for term in terms(rows) {
        losses = losses.series(series(&term.replacen("loss_", "", 1).replace('_', " "), term));
    }
    let mut charts = vec![losses];
    let accuracies = ACCURACIES.map(|(key, name)| series(name, key));
    let accuracies = accuracies.into_iter().filter(|series| !series.is_empty());
    let accuracies: Vec<Series> = accuracies.collect();
    if !accuracies.is_empty() {
        charts.push(accuracies.into_iter().fold(chart("Accuracy", "%"), Chart::series));
    }
    charts.push(chart("Learning rate", "per step").series(series("learning rate", "lr")));
    charts.push(chart("Speed", "images per second").series(series("speed", "images_per_second")));
    let facts = rows.last().map_or_else(Vec::new, |row| {
        let fact = |name: &str, key: &str, decimals: Option<usize>| {
            let value = match (number(row, key), decimals) {
                (Some(value), Some(decimals)) => format!("{value:.decimals$}"),
                (Some(value), None) => value.to_string(),
                (None, _) => "not finite".to_owned(),
            };
            (name.to_owned(), value)
        };
        vec![
            fact("last step", "step", None),
            fact("epoch", "epoch", None),
            fact("loss", "loss", Some(4)),
            fact("learning rate", "lr", None),
            fact("images per second", "images_per_second", Some(1)),
        ]
    });
    let report = RunReport {
        title,
        facts,
        charts,
        settings: config,
    };
    Ok(report.to_html()?)
}

/// The keys of the terms of the loss, in the order in which they first come.
fn terms(rows: &[Row]) -> Vec<&str> {
    let mut terms: Vec<&str> = Vec::new();
    for key in rows.iter().flat_map(Map::keys) {
        // The scale of a loss in half precision is no term of it.
        if key.starts_with("loss_") && key != "loss_scale" && !terms.contains(&key.as_str()) {
            terms.push(key);
        }
    }
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, loss: f32) -> Row {
        let row = serde_json::json!({
            "step": step, "epoch": 1, "loss": loss, "loss_image": loss / 3.0, "loss_scale": 1024,
            "lr": 0.1, "images_per_second": 9.0,
        });
        row.as_object().unwrap().clone()
    }

    #[test]
    fn a_page_names_its_curves_facts_and_settings() {
        let page = html("a <run>", &[row(1, 2.0), row(2, 1.0)], "seed = 0 # a & b").unwrap();
        for part in ["a &#60;run&#62;", "a &#38; b", ">image<", ">Speed<", ">1.0000<"] {
            assert!(page.contains(part), "{part} in {page}");
        }
        for part in [">scale<", ">Accuracy<", "a <run>"] {
            assert!(!page.contains(part), "{part} in {page}");
        }
        let mut row = row(3, 0.5);
        row.insert("ap50".to_owned(), 31.5.into());
        let page = html("x", &[row], "").unwrap();
        assert!(page.contains(">Accuracy<") && !page.contains("top-1"));
    }

    #[test]
    fn odd_runs_have_a_page() {
        for rows in [vec![], vec![row(1, f32::NAN)], vec![row(1, 1.0)]] {
            let page = html("x", &rows, "").unwrap();
            assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        }
    }
}
