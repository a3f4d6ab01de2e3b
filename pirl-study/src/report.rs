//! The page of a study.

use pirl_report::{Chart, FigureReport, FindingReport, Series, StudyReport, Table, TableCell};

use crate::config::{Figure, PublishedSeries};
use crate::error::Result;
use crate::folder::StudyFolder;
use crate::outcome::{Cell, FigureOutcome, MeasureOutcome, Outcome};
use crate::plan::Plan;

/// Writes what was found so far into `folder`: `report.html`, with `facts` above the figures and links to
/// the runs; `study.md`, with the charts beside it as SVG files; `study.json`; and a CSV table for each
/// figure.
///
/// # Errors
/// [`StudyError`](crate::StudyError) if a result cannot be read, a chart cannot be drawn, or a file cannot
/// be written.
pub fn write_report(
    plan: &Plan,
    folder: &StudyFolder,
    mut facts: Vec<(String, String)>,
) -> Result<Outcome> {
    let study = &plan.study;
    let outcome = Outcome::read(plan, folder)?;
    let done = plan.runs.iter().filter(|run| folder.is_done(run)).count();
    let seeds: Vec<_> = study.seeds.iter().map(u64::to_string).collect();
    facts.extend([
        ("recipe".to_owned(), study.recipe.clone()),
        ("seeds".to_owned(), seeds.join(", ")),
        ("runs".to_owned(), format!("{done} of {}", plan.runs.len())),
    ]);
    if !plan.left_out.is_empty() {
        facts.push(("left out".to_owned(), plan.left_out.join(", ")));
    }
    folder.write("study.json", outcome.to_json()?.as_bytes())?;
    for figure in &outcome.figures {
        folder.write(&format!("{}.csv", figure.name), &figure.to_csv()?)?;
    }
    let figures = study.figures.iter().zip(&outcome.figures);
    let settings = toml::to_string(study).unwrap_or_default();
    let report = StudyReport {
        title: &outcome.title,
        facts,
        figures: figures
            .map(|(figure, found)| figure_report(figure, found))
            .collect(),
        settings: &settings,
    };
    folder.write("report.html", report.to_html()?.as_bytes())?;
    folder.write("study.md", report.to_markdown().as_bytes())?;
    for (name, svg) in report.charts()? {
        folder.write(&name, svg.as_bytes())?;
    }
    Ok(outcome)
}

fn figure_report(figure: &Figure, found: &FigureOutcome) -> FigureReport {
    let first = |place: usize| match place {
        0 => figure.published.as_slice(),
        _ => &[],
    };
    let measures = || found.measures.iter().enumerate();
    let charts = measures().map(|(place, measure)| chart(found, measure, first(place)));
    let tables = measures().map(|(place, measure)| table(found, measure, first(place)));
    let findings = found.findings.iter().map(|verdict| FindingReport {
        claim: verdict.claim.clone(),
        verdict: verdict.in_words(),
        holds: verdict.holds,
    });
    FigureReport {
        name: found.name.clone(),
        title: found.title.clone(),
        source: found.source.clone(),
        charts: charts.collect(),
        tables: tables.collect(),
        findings: findings.collect(),
    }
}

/// The curves of a measure over the axis; without an axis, the series side by side.
fn chart(figure: &FigureOutcome, measure: &MeasureOutcome, published: &[PublishedSeries]) -> Chart {
    let point = |x: usize, cell: &Cell| {
        let deviation = cell.deviation.unwrap_or(0.0);
        cell.mean.map(|mean| (x as f64, mean, deviation))
    };
    let names = || measure.series.iter().map(|series| series.name.clone());
    let side_by_side = figure.x.is_empty();
    let mut chart = Chart::new(&measure.label, &figure.x_label, &measure.label);
    chart = chart.x_names(match side_by_side {
        true => names().collect(),
        false => figure.x.clone(),
    });
    if side_by_side {
        let points = measure.series.iter().enumerate();
        for (x, series) in points {
            let points = series.cells.first().and_then(|cell| point(x, cell));
            chart = chart.series(Series::with_deviations(&series.name, points));
        }
    } else {
        for series in &measure.series {
            let points = series.cells.iter().enumerate();
            let points = points.filter_map(|(x, cell)| point(x, cell));
            chart = chart.series(Series::with_deviations(&series.name, points));
        }
    }
    for PublishedSeries { name, values } in published {
        let points = values.iter().enumerate().map(|(x, y)| (x as f64, *y));
        chart = chart.series(Series::new(format!("{name} (published)"), points));
    }
    chart
}

/// A row for each series, with the mean and the deviation at each value of the axis and a link to each run.
fn table(figure: &FigureOutcome, measure: &MeasureOutcome, published: &[PublishedSeries]) -> Table {
    let axis = match figure.x.is_empty() {
        true => vec![String::new()],
        false => figure.x.clone(),
    };
    let mut head = vec![figure.x_label.clone()];
    head.extend(axis);
    let mut rows: Vec<Vec<TableCell>> = Vec::new();
    for series in &measure.series {
        let mut row = vec![series.name.as_str().into()];
        row.extend(series.cells.iter().map(|cell| {
            TableCell {
                text: cell.to_string(),
                links: cell
                    .values
                    .iter()
                    .map(|found| (found.seed.to_string(), found.run.clone()))
                    .collect(),
            }
        }));
        rows.push(row);
    }
    for PublishedSeries { name, values } in published {
        let name = format!("{name} (published)");
        let values = values.iter().map(|value| match value.is_finite() {
            true => format!("{value:.1}"),
            false => "-".to_owned(),
        });
        if figure.x.is_empty() {
            // Side by side, the published values are a column and not a row.
            for (row, found) in rows.iter_mut().zip(values) {
                row.push(found.into());
            }
            head.push(name);
        } else {
            rows.push(
                [name]
                    .into_iter()
                    .chain(values)
                    .map(TableCell::from)
                    .collect(),
            );
        }
    }
    Table {
        title: measure.label.clone(),
        head,
        rows,
    }
}
