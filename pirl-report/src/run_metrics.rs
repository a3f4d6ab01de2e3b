//! What the page of a run shows, from what its training logged.

use serde_json::{Map, Value};

use crate::{Chart, RunReport, Series};

/// A line of `metrics.jsonl`, an object with the number of its `step`.
type Row = Map<String, Value>;

/// Shares of right answers, in percent: the key of each, and what the report calls it.
const ACCURACIES: [(&str, &str); 5] = [
    ("top1", "top-1 of the batch"),
    ("knn_top1", "nearest neighbours"),
    ("ap", "AP"),
    ("ap50", "AP50"),
    ("ap75", "AP75"),
];

/// What embeddings are like: title, unit and key of each curve.
const EMBEDDINGS: [(&str, &str, &str); 3] = [
    (
        "Alignment",
        "squared distance to the bank's row",
        "alignment",
    ),
    ("Uniformity", "0: all are the same", "uniformity"),
    ("Effective rank", "1: all lie on a line", "effective_rank"),
];

impl<'a> RunReport<'a> {
    /// The report of a run called `title` with these `settings` (TOML, say), from the lines that
    /// `pirl_train::MetricsFile` reads: the curves of the loss and its terms, of accuracies, learning
    /// rate and speed, and the last of each.
    pub fn from_metrics(title: &'a str, rows: &[Row], settings: &'a str) -> Self {
        let number = |row: &Row, key: &str| row.get(key).and_then(Value::as_f64);
        let series = |name: &str, key: &str| {
            let point = |row| Some((number(row, "step")?, number(row, key)?));
            Series::new(name, rows.iter().filter_map(point))
        };
        let chart = |title: &str, unit: &str| Chart::new(title, "step", unit);
        let mut losses = chart("Loss", "mean of the batch").series(series("total", "loss"));
        let terms = terms(rows);
        let several = terms.len() > 1;
        // A single term is the loss.
        for term in terms.into_iter().filter(|_| several) {
            losses = losses.series(series(
                &term.replacen("loss_", "", 1).replace('_', " "),
                term,
            ));
        }
        let mut charts = vec![losses];
        let accuracies = ACCURACIES.map(|(key, name)| series(name, key));
        let accuracies = accuracies.into_iter().filter(|series| !series.is_empty());
        let accuracies: Vec<Series> = accuracies.collect();
        if !accuracies.is_empty() {
            charts.push(
                accuracies
                    .into_iter()
                    .fold(chart("Accuracy", "%"), Chart::series),
            );
        }
        for (title, unit, key) in EMBEDDINGS {
            let curve = series(key, key);
            if !curve.is_empty() {
                charts.push(chart(title, unit).series(curve));
            }
        }
        charts.push(chart("Learning rate", "").series(series("learning rate", "lr")));
        charts
            .push(chart("Speed", "images per second").series(series("speed", "images_per_second")));
        let facts = rows.last().map_or_else(Vec::new, |row| {
            let fact = |name: &str, key: &str, digits: usize| {
                let value =
                    number(row, key).map_or("not finite".to_owned(), |x| rounded(x, digits));
                (name.to_owned(), value)
            };
            vec![
                fact("last step", "step", 12),
                fact("epoch", "epoch", 12),
                fact("loss", "loss", 5),
                fact("learning rate", "lr", 4),
                fact("images per second", "images_per_second", 4),
            ]
        });
        Self {
            title,
            facts,
            charts,
            settings,
            ..Self::default()
        }
    }
}

/// A number with at most so many digits that count.
fn rounded(x: f64, digits: usize) -> String {
    let place = if x == 0.0 {
        0.0
    } else {
        x.abs().log10().floor()
    };
    let decimals = (digits as f64 - 1.0 - place).clamp(0.0, 12.0) as usize;
    let text = format!("{x:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
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

    fn html(title: &str, rows: &[Row], settings: &str) -> String {
        let report = RunReport::from_metrics(title, rows, settings);
        report.to_html().unwrap()
    }

    fn row(step: u64, loss: f32) -> Row {
        let row = serde_json::json!({
            "step": step, "epoch": 1, "loss": loss, "loss_image": loss / 3.0, "loss_patch": loss,
            "loss_scale": 1024, "lr": 0.1, "images_per_second": 9.0,
        });
        row.as_object().unwrap().clone()
    }

    #[test]
    fn a_page_names_its_curves_facts_and_settings() {
        let page = html("a <run>", &[row(1, 2.0), row(2, 1.0)], "seed = 0 # a & b");
        for part in [
            "a &#60;run&#62;",
            "a &#38; b",
            "\nimage\n",
            "\npatch\n",
            ">Speed<",
            ">1<",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        for part in ["\nscale\n", ">Accuracy<", "a <run>"] {
            assert!(!page.contains(part), "{part} in {page}");
        }
        let mut row = row(3, 0.5);
        row.insert("ap50".to_owned(), 31.5.into());
        row.remove("loss_patch");
        let page = html("x", &[row], "");
        assert!(page.contains(">Accuracy<") && !page.contains("top-1"));
        assert!(!page.contains(">Alignment<"));
        let mut row = self::row(4, 0.5);
        row.insert("alignment".to_owned(), 0.5.into());
        assert!(html("x", &[row], "").contains(">Alignment<"));
        assert!(
            !page.contains("image\n"),
            "a single term is the loss: {page}"
        );
    }

    #[test]
    fn facts_have_the_digits_that_count() {
        for (x, digits, text) in [
            (0.099_977_96, 4, "0.09998"),
            (6.103_44, 5, "6.1034"),
            (93_600.0, 12, "93600"),
            (338.07, 4, "338.1"),
            (12_345.6, 4, "12346"),
            (0.0, 4, "0"),
            (-0.5, 4, "-0.5"),
        ] {
            assert_eq!(rounded(x, digits), text);
        }
    }

    #[test]
    fn odd_runs_have_a_page() {
        for rows in [vec![], vec![row(1, f32::NAN)], vec![row(1, 1.0)]] {
            let page = html("x", &rows, "");
            assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        }
    }
}
