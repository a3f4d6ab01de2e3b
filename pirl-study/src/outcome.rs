//! What a study found: the values of its figures, and whether they show what was expected.

use std::fmt;

use serde::Serialize;

use crate::config::{BEST, Figure, Finding, Place};
use crate::error::{Result, StudyError};
use crate::folder::StudyFolder;
use crate::plan::Plan;

/// All values of a study, as far as its runs are made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The study's title.
    pub title: String,
    /// Its recipe.
    pub recipe: String,
    /// Its seeds.
    pub seeds: Vec<u64>,
    /// Its figures.
    pub figures: Vec<FigureOutcome>,
}

/// The values of a figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FigureOutcome {
    /// The figure's name.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// Where it is in the paper.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What stands under the horizontal axis; empty without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub x_label: String,
    /// How the values there are called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub x: Vec<String>,
    /// What is measured.
    pub measures: Vec<MeasureOutcome>,
    /// Whether it shows what was expected.
    pub findings: Vec<Verdict>,
}

/// The curves of a measure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasureOutcome {
    /// What it is, with its unit.
    pub label: String,
    /// A curve for each series.
    pub series: Vec<SeriesOutcome>,
}

/// A curve: a cell for each value on the axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeriesOutcome {
    /// The series' name.
    pub name: String,
    /// In the axis' order; a single one without an axis.
    pub cells: Vec<Cell>,
}

/// A point: what was measured with each seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// The mean; none before any run is made.
    pub mean: Option<f64>,
    /// The sample standard deviation; none of fewer than two.
    pub deviation: Option<f64>,
    /// The values, with the seed and the run that each is of.
    pub values: Vec<Measured>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The run's seed.
    pub seed: u64,
    /// The run's report, or the folder of a network that is not trained, in the study's folder.
    pub run: String,
    /// The value.
    pub value: f64,
}

/// Whether a finding holds here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The finding, in words.
    pub claim: String,
    /// What was expected of the difference, at least.
    pub by: f64,
    /// The difference, of the runs of each seed with each other: its mean; none before the runs are made.
    pub difference: Option<f64>,
    /// Its sample standard deviation; none of fewer than two seeds.
    pub deviation: Option<f64>,
    /// Whether it is what was expected.
    pub holds: Option<bool>,
}

impl Outcome {
    /// Reads what there is in `folder`.
    ///
    /// # Errors
    /// [`StudyError::Outcome`] or [`StudyError::Io`] if a result cannot be read.
    pub fn read(plan: &Plan, folder: &StudyFolder) -> Result<Self> {
        let study = &plan.study;
        let mut figures: Vec<_> = study.figures.iter().map(empty).collect();
        for point in &plan.points {
            let run = &plan.runs[point.run];
            let task = &run.tasks[point.task];
            let Some(value) = folder.value(run, task, &point.pointer)? else {
                continue;
            };
            let measure = &mut figures[point.figure].measures[point.measure];
            measure.series[point.series].cells[point.x]
                .values
                .push(Measured {
                    seed: point.seed,
                    run: match run.trained {
                        true => format!("runs/{}/network/report.html", run.key),
                        false => format!("runs/{}", run.key),
                    },
                    value,
                });
        }
        for (figure, outcome) in study.figures.iter().zip(&mut figures) {
            for measure in &mut outcome.measures {
                let cells = measure
                    .series
                    .iter_mut()
                    .flat_map(|series| &mut series.cells);
                cells.for_each(|cell| {
                    let values: Vec<_> = cell.values.iter().map(|found| found.value).collect();
                    (cell.mean, cell.deviation) = statistics(&values);
                });
            }
            outcome.findings = verdicts(figure, outcome);
        }
        Ok(Self {
            title: study.title.clone(),
            recipe: study.recipe.clone(),
            seeds: study.seeds.clone(),
            figures,
        })
    }

    /// As JSON, for `study.json`.
    ///
    /// # Errors
    /// [`StudyError::Outcome`] if JSON has no such number.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| StudyError::Outcome {
            path: "study.json".into(),
            reason: error.to_string(),
        })?;
        Ok(text + "\n")
    }
}

impl FigureOutcome {
    /// A line for each value, as CSV: measure, series, x, seed, value.
    ///
    /// # Errors
    /// [`StudyError::Outcome`] if it cannot be written.
    pub fn to_csv(&self) -> Result<Vec<u8>> {
        let write = || -> std::result::Result<Vec<u8>, csv::Error> {
            let mut table = csv::Writer::from_writer(Vec::new());
            table.write_record(["measure", "series", "x", "seed", "value", "run"])?;
            for measure in &self.measures {
                for series in &measure.series {
                    for (place, cell) in series.cells.iter().enumerate() {
                        let x = self.x.get(place).map_or("", String::as_str);
                        for Measured { seed, run, value } in &cell.values {
                            let (seed, value) = (seed.to_string(), value.to_string());
                            let (label, name) = (measure.label.as_str(), series.name.as_str());
                            table.write_record([label, name, x, &seed, &value, run])?;
                        }
                    }
                }
            }
            table
                .into_inner()
                .map_err(|error| error.into_error().into())
        };
        write().map_err(|error| StudyError::Outcome {
            path: format!("{}.csv", self.name).into(),
            reason: error.to_string(),
        })
    }
}

fn empty(figure: &Figure) -> FigureOutcome {
    let x = figure.x.as_ref().map_or(Vec::new(), |axis| axis.names());
    let cells = vec![Cell::default(); x.len().max(1)];
    let series = |name: &String| SeriesOutcome {
        name: name.clone(),
        cells: cells.clone(),
    };
    let of_layers = figure.x.as_ref().is_some_and(|axis| axis.of_layers());
    let measures = figure.measures.iter().map(|measure| MeasureOutcome {
        label: match of_layers {
            true => measure.kind_label(),
            false => measure.label(),
        },
        series: figure.series.iter().map(|of| series(&of.name)).collect(),
    });
    FigureOutcome {
        name: figure.name.clone(),
        title: figure.title.clone(),
        source: figure.source.clone(),
        x_label: figure
            .x
            .as_ref()
            .map_or_else(String::new, |axis| axis.label.clone()),
        measures: measures.collect(),
        findings: Vec::new(),
        x,
    }
}

/// Mean and sample standard deviation.
fn statistics(values: &[f64]) -> (Option<f64>, Option<f64>) {
    if values.is_empty() {
        return (None, None);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
    (Some(mean), deviation)
}

fn verdicts(figure: &Figure, outcome: &FigureOutcome) -> Vec<Verdict> {
    let Some(first) = outcome.measures.first() else {
        return Vec::new();
    };
    let cell = |place: &Place| -> Option<&Cell> {
        let series = first
            .series
            .iter()
            .find(|series| series.name == place.series)?;
        match place.x.as_deref() {
            None => series.cells.first(),
            Some(BEST) => {
                // Only once all of the curve is there.
                let of = figure.series.iter().find(|of| of.name == series.name)?;
                let cells = outcome.x.iter().zip(&series.cells);
                let mut expected = cells.filter(|(x, _)| of.has(x));
                let whole = expected.all(|(_, cell)| cell.mean.is_some());
                let cells = series.cells.iter().filter(|_| whole);
                let mean = |cell: &Cell| cell.mean.unwrap_or(f64::NEG_INFINITY);
                cells.max_by(|a, b| mean(a).total_cmp(&mean(b)))
            }
            Some(x) => series
                .cells
                .get(outcome.x.iter().position(|name| name == x)?),
        }
    };
    let verdict = |finding: &Finding| {
        let pair = (cell(&finding.higher), cell(&finding.lower));
        let differences: Vec<f64> = match pair {
            (Some(higher), Some(lower)) => higher
                .values
                .iter()
                .filter_map(|high| {
                    let low = lower.values.iter().find(|low| low.seed == high.seed)?;
                    Some(high.value - low.value)
                })
                .collect(),
            _ => Vec::new(),
        };
        let (difference, deviation) = statistics(&differences);
        Verdict {
            claim: finding.claim.clone(),
            by: finding.by,
            difference,
            deviation,
            holds: difference.map(|difference| difference >= finding.by),
        }
    };
    figure.findings.iter().map(verdict).collect()
}

impl fmt::Display for Cell {
    /// Mean and deviation: three digits after the point of small numbers, one of percents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(mean) = self.mean else {
            return f.pad("-");
        };
        let digits = if mean.abs() < 2.5 { 3 } else { 1 };
        f.pad(&match self.deviation {
            Some(deviation) => format!("{mean:.digits$} ± {deviation:.digits$}"),
            None => format!("{mean:.digits$}"),
        })
    }
}

impl fmt::Display for Outcome {
    /// The figures as tables, with the findings under each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for figure in &self.figures {
            writeln!(f, "{}", figure.title)?;
            for measure in &figure.measures {
                writeln!(f, "  {}", measure.label)?;
                let names = measure.series.iter().map(|series| series.name.len());
                let wide = names.fold(figure.x_label.len(), usize::max);
                if !figure.x.is_empty() {
                    write!(f, "    {:<wide$}", figure.x_label)?;
                    figure.x.iter().try_for_each(|x| write!(f, " {x:>12}"))?;
                    writeln!(f)?;
                }
                for series in &measure.series {
                    write!(f, "    {:<wide$}", series.name)?;
                    let mut cells = series.cells.iter();
                    cells.try_for_each(|cell| write!(f, " {cell:>12}"))?;
                    writeln!(f)?;
                }
            }
            for verdict in &figure.findings {
                writeln!(f, "  {}: {}", verdict.claim, verdict.in_words())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Verdict {
    /// In words: whether it holds, and by how many deviations.
    pub fn in_words(&self) -> String {
        let (Some(holds), Some(difference)) = (self.holds, self.difference) else {
            return "not measured yet".to_owned();
        };
        let holds = if holds { "holds" } else { "does not hold" };
        let beyond = (difference - self.by).abs();
        match self.deviation {
            Some(deviation) if deviation > 0.0 => format!(
                "{holds}: {difference:+.2} ± {deviation:.2}, {:.1} deviations from {:+}",
                beyond / deviation,
                self.by
            ),
            Some(_) => format!(
                "{holds}: {difference:+.2} with every seed, expected at least {:+}",
                self.by
            ),
            None => format!(
                "{holds}: {difference:+.2} (one seed), expected at least {:+}",
                self.by
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(statistics(&[]), (None, None));
        assert_eq!(statistics(&[3.0]), (Some(3.0), None));
        let (mean, deviation) = statistics(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(mean, Some(3.0));
        assert!((deviation.unwrap() - 2.160_246_9).abs() < 1e-6);
    }

    #[test]
    fn a_verdict_says_by_how_many_deviations() {
        let verdict = Verdict {
            claim: "a above b".to_owned(),
            by: 2.0,
            difference: Some(5.0),
            deviation: Some(1.5),
            holds: Some(true),
        };
        assert_eq!(
            verdict.in_words(),
            "holds: +5.00 ± 1.50, 2.0 deviations from +2"
        );
        let one = Verdict {
            deviation: None,
            difference: Some(-1.0),
            holds: Some(false),
            ..verdict
        };
        assert!(
            one.in_words()
                .starts_with("does not hold: -1.00 (one seed)")
        );
        let alike = Verdict {
            deviation: Some(0.0),
            ..one
        };
        assert_eq!(
            alike.in_words(),
            "does not hold: -1.00 with every seed, expected at least +2"
        );
    }
}
