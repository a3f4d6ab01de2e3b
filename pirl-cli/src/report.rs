//! `report.html`: the curves of a run and its settings on one page that needs nothing else.

use std::fmt::Write;

use anyhow::{Context, Result};
use pirl_train::MetricsFile;
use serde_json::{Map, Value};

use crate::output::write_file;
use crate::run_dir::RunDir;

/// A line of `metrics.jsonl`.
type Row = Map<String, Value>;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 60.0;

struct Curve {
    name: &'static str,
    color: &'static str,
    /// (step, value)
    points: Vec<(f64, f64)>,
}

/// Writes the report of a run.
pub(crate) fn write(folder: &RunDir) -> Result<()> {
    let rows = MetricsFile::read(&folder.metrics())?;
    let config = std::fs::read_to_string(folder.config())
        .with_context(|| format!("cannot read {}", folder.config().display()))?;
    let title = folder.path().display().to_string();
    write_file(&folder.report(), html(&title, &rows, &config).as_bytes())
}

/// The page of a run called `title`, with the TOML of its settings.
fn html(title: &str, rows: &[Row], config: &str) -> String {
    let number = |row: &Row, key: &str| row.get(key).and_then(Value::as_f64);
    let curve = |name, color, key: &str| Curve {
        name,
        color,
        points: rows
            .iter()
            .filter_map(|row| Some((number(row, "step")?, number(row, key)?)))
            .collect(),
    };
    let losses = [
        curve("loss", "#1b4f72", "loss"),
        curve("image term", "#7fb3d5", "loss_image"),
        curve("patch term", "#e59866", "loss_patch"),
    ];
    let accuracies = [curve("top-1 of the batch, %", "#b9770e", "top1")];
    let accuracy = match accuracies[0].points.is_empty() {
        true => String::new(),
        false => format!("<h2>Accuracy</h2>\n{}\n", chart(&accuracies)),
    };
    let rates = [curve("learning rate", "#1e8449", "lr")];
    let speeds = [curve("images per second", "#6c3483", "images_per_second")];
    let title = escape(title);
    let last = rows.last().map_or(String::new(), |row| {
        format!(
            "<p>{} steps, {} epochs; last loss {}.</p>",
            row["step"], row["epoch"], row["loss"]
        )
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body{{font:15px sans-serif;max-width:900px;margin:2em auto;color:#222}}\
         svg{{width:100%}}text{{font:12px sans-serif}}\
         pre{{background:#f4f4f4;padding:1em;overflow:auto}}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{last}\n<h2>Loss</h2>\n{}\n{accuracy}<h2>Learning rate</h2>\n{}\n<h2>Speed</h2>\n{}\n\
         <h2>Settings</h2>\n<pre>{}</pre>\n</body>\n</html>\n",
        chart(&losses),
        chart(&rates),
        chart(&speeds),
        escape(config)
    )
}

fn chart(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let Some((x0, x1)) = range(points().map(|point| point.0)) else {
        return "<p>No step was logged.</p>".to_owned();
    };
    let Some((y0, y1)) = range(points().map(|point| point.1)) else {
        return "<p>No value is finite.</p>".to_owned();
    };
    let x = |value: f64| MARGIN + (value - x0) / (x1 - x0) * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - 30.0 - (value - y0) / (y1 - y0) * (HEIGHT - 60.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\">");
    for part in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(part) / 4.0;
        let at = y(value);
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            at + 4.0,
            short(value)
        );
    }
    for (value, anchor) in [(x0, "start"), (x1, "end")] {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">step {value}</text>",
            x(value),
            HEIGHT - 8.0
        );
    }
    let shown = curves.iter().filter(|curve| !curve.points.is_empty());
    for (position, curve) in shown.enumerate() {
        let line: Vec<String> = curve
            .points
            .iter()
            .filter(|point| point.1.is_finite())
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
            .collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\
             <text x=\"{}\" y=\"18\" fill=\"{}\">{}</text>",
            line.join(" "),
            curve.color,
            MARGIN + 140.0 * position as f64,
            curve.color,
            curve.name
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The least and the greatest finite value, kept apart; `None` when there is none.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (least, greatest) = values
        .filter(|value| value.is_finite())
        .map(|value| (value, value))
        .reduce(|(least, greatest), (value, _)| (least.min(value), greatest.max(value)))?;
    let apart = if greatest > least { 0.0 } else { 0.5 };
    Some((least - apart, greatest + apart))
}

fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 {
        format!("{value:.1e}")
    } else {
        format!("{value:.2}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_its_curves_and_survives_odd_input() {
        let row = |step: u64, loss: f32| -> Row {
            let row = serde_json::json!({
                "step": step, "epoch": 1, "loss": loss, "lr": 0.1, "images_per_second": 9.0,
            });
            row.as_object().unwrap().clone()
        };
        let page = html("a <run>", &[row(1, 2.0), row(2, 1.0)], "seed = 0 # a & b");
        assert!(page.contains("a &lt;run&gt;") && page.contains("a &amp; b"));
        // Loss falls: the line goes from the top left to the bottom right.
        assert!(page.contains("points=\"60.0,30.0 800.0,230.0\""), "{page}");
        for rows in [vec![], vec![row(1, f32::NAN)], vec![row(1, 1.0)]] {
            let page = html("x", &rows, "");
            assert!(!page.contains("NaN,") && !page.contains(",NaN"), "{page}");
        }
    }
}
