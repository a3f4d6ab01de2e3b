//! How far changes of an image move the features of networks.

use std::collections::BTreeMap;

use pirl_data::Image;
use pirl_eval::Distances;

use crate::chart::Chart;
use crate::error::{ReportError, Result};
use crate::series::Series;
use crate::sheet::{contact_sheet, framed};

/// Bars of a histogram.
const BINS: usize = 40;
/// Sides of a chart, pixels of a plain screen.
const CHART: (usize, usize) = (520, 330);
/// Pixels between and around the charts.
const GAP: usize = 24;

/// The [charts](invariance_charts) as one picture, two in a row.
///
/// # Errors
/// Those of [`invariance_charts`]; [`ReportError::Draw`]; [`ReportError::TooLarge`].
pub fn invariance_chart(reports: &[(String, BTreeMap<String, Distances>)]) -> Result<Image> {
    let charts = invariance_charts(reports)?;
    let images = charts.iter().map(|chart| chart.to_image(CHART.0, CHART.1));
    framed(
        &contact_sheet(&images.collect::<Result<Vec<Image>>>()?, 2, GAP)?,
        GAP,
    )
}

/// A chart for each change, with the distribution that each of `reports` (weights by name) has of its
/// distances, on the same axes.
///
/// # Errors
/// [`ReportError::Empty`] without reports, or if the first has no change.
pub fn invariance_charts(reports: &[(String, BTreeMap<String, Distances>)]) -> Result<Vec<Chart>> {
    let Some((_, first)) = reports.first().filter(|(_, first)| !first.is_empty()) else {
        return Err(ReportError::Empty {
            picture: "a chart of distances",
            expected: "the distances of at least one change",
        });
    };
    let values = reports.iter().flat_map(|(_, changes)| changes.values());
    let farthest = values.flat_map(|distances| &distances.values);
    let farthest = farthest.fold(0.0f64, |most, &x| most.max(x));
    // A tenth more than any distance is a bin of its own, which closes the curve.
    let width = ((farthest * 10.0).floor() + 1.0) / 10.0;
    let of = |name: &String| -> Vec<Vec<f64>> {
        let bins = reports
            .iter()
            .map(|(_, changes)| histogram(changes.get(name), width));
        bins.collect()
    };
    let histograms: Vec<_> = first.keys().map(|name| (name, of(name))).collect();
    let shares = histograms.iter().flat_map(|(_, bins)| bins).flatten();
    let highest = shares.fold(0.0f64, |most, &x| most.max(x));
    let highest = ((highest * 10.0).floor() + 1.0) / 10.0;
    let charts = histograms.iter().map(|(name, histograms)| {
        let title = format!("Invariance: {name}");
        let mut chart = Chart::new(title, "L2 distance", "share of images")
            .x_range([0.0, width])
            .y_range([0.0, highest])
            .note("mean");
        for ((weights, changes), bins) in reports.iter().zip(histograms) {
            let mean = changes.get(*name).map_or(f64::NAN, |found| found.mean);
            let label = format!("{mean:.3} {weights}");
            chart = chart.series(Series::new(label, steps(bins, width)).filled());
        }
        chart
    });
    Ok(charts.collect())
}

/// The mean distances of each change with their deviations, as text, for each of `reports`.
pub fn invariance_table(reports: &[(String, BTreeMap<String, Distances>)]) -> String {
    let mut text = String::new();
    for (weights, changes) in reports {
        text += &format!("{weights}\n");
        for (name, found) in changes {
            let Distances { mean, std, .. } = found;
            text += &format!("  {name:<16} L2 distance {mean:.3} (standard deviation {std:.3})\n");
        }
    }
    text
}

/// The share of the distances in each of the bins of `0..width`.
fn histogram(distances: Option<&Distances>, width: f64) -> Vec<f64> {
    let values = distances.map_or(&[][..], |distances| &distances.values);
    let mut bins = vec![0.0; BINS];
    for value in values {
        let bin = (value / width * BINS as f64) as usize;
        bins[bin.min(BINS - 1)] += 1.0 / values.len() as f64;
    }
    bins
}

/// The bins as steps.
fn steps(bins: &[f64], width: f64) -> Vec<(f64, f64)> {
    let edge = |bin: usize| bin as f64 * width / BINS as f64;
    let steps = bins
        .iter()
        .enumerate()
        .flat_map(|(bin, share)| [(edge(bin), *share), (edge(bin + 1), *share)]);
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::color;
    use crate::chart::testing::{lines, near, place};

    /// What is drawn depends on the values and the mean alone.
    fn distances(values: &[f64]) -> Distances {
        Distances {
            relative: None,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            std: 0.0,
            quantiles: BTreeMap::new(),
            values: values.to_vec(),
        }
    }

    #[test]
    fn a_histogram_counts_every_distance() {
        let distances = distances(&[0.0, 0.01, 1.0, 1.39]);
        let bins = histogram(Some(&distances), 1.4);
        assert_eq!((bins[0], bins[BINS - 1]), (0.5, 0.25));
        assert!((bins.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn each_change_has_a_chart_and_each_network_a_curve_on_the_same_axes() {
        let changes = |far: f64| -> BTreeMap<String, Distances> {
            let values = [("crop", [0.1, 0.1, far, far]), ("another image", [1.0; 4])];
            values
                .map(|(name, values)| (name.to_owned(), distances(&values)))
                .into()
        };
        let reports = [
            ("first".to_owned(), changes(0.5)),
            ("second".to_owned(), changes(0.3)),
        ];
        let charts = invariance_charts(&reports).unwrap();
        let titles: Vec<&str> = charts.iter().map(Chart::title).collect();
        assert_eq!(titles, ["Invariance: another image", "Invariance: crop"]);
        let svg = charts[1].to_svg(CHART.0, CHART.1).unwrap();
        assert!(
            svg.contains("0.300 first") && svg.contains("0.200 second"),
            "{svg}"
        );
        // Half the images are in the bin that begins at 0.495 of 1.1, at the height 0.5 of 1.1.
        let first = &lines(&svg, color(0))[0];
        for point in [[0.495 / 1.1, 0.5 / 1.1], [0.0, 0.0], [1.0, 0.0]] {
            let place = place(&svg, point);
            assert!(
                first.iter().any(|at| near(*at, place)),
                "{point:?}: {first:?}"
            );
        }
        let chart = invariance_chart(&reports).unwrap();
        let sides = (4 * CHART.0 + 3 * GAP, 2 * CHART.1 + 2 * GAP);
        assert_eq!((chart.width, chart.height), sides);
        for hue in [color(0), color(1)] {
            assert!(chart.pixels.chunks(3).any(|pixel| pixel == hue), "{hue:?}");
        }
    }

    #[test]
    fn reports_without_distances_are_refused_or_empty() {
        assert!(invariance_chart(&[]).is_err());
        assert!(invariance_chart(&[("none".to_owned(), BTreeMap::new())]).is_err());
        let one = |values: &[f64]| {
            let changes = BTreeMap::from([("crop".to_owned(), distances(values))]);
            invariance_charts(&[("one".to_owned(), changes)]).unwrap()[0]
                .to_svg(CHART.0, CHART.1)
                .unwrap()
        };
        for values in [&[][..], &[0.0], &[2.0; 3]] {
            let svg = one(values);
            assert!(lines(&svg, color(0))[0].len() == 2 * BINS, "{svg}");
        }
    }
}
