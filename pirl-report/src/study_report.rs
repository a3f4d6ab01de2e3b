//! The page of a study: its figures, with a table and the findings under each.

use askama::Template;

use crate::chart::Chart;
use crate::error::Result;
use crate::page::colors;

/// Sides of a chart, pixels.
const CHART: (usize, usize) = (460, 300);

/// What a study found, for people to look at and to send round.
#[derive(Clone, Debug)]
pub struct StudyReport<'a> {
    /// The study's title.
    pub title: &'a str,
    /// What stands above the figures, in a few words each: its name, and what it is.
    pub facts: Vec<(String, String)>,
    /// In their order.
    pub figures: Vec<FigureReport>,
    /// The study as it is written.
    pub settings: &'a str,
}

/// A figure of a study.
#[derive(Clone, Debug)]
pub struct FigureReport {
    /// A word that links on the page may name it by.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// Where it is in the paper; empty if it is not.
    pub source: String,
    /// A chart for each measure.
    pub charts: Vec<Chart>,
    /// The same in numbers.
    pub tables: Vec<Table>,
    /// Whether it shows what was expected.
    pub findings: Vec<FindingReport>,
}

/// A table of a figure.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What stands above it.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// A cell for each column.
    pub rows: Vec<Vec<TableCell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub struct TableCell {
    /// What it says.
    pub text: String,
    /// Links after that: a name, and an address relative to the page.
    pub links: Vec<(String, String)>,
}

impl<T: Into<String>> From<T> for TableCell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            links: Vec::new(),
        }
    }
}

/// Something expected, and whether it is so.
#[derive(Clone, Debug)]
pub struct FindingReport {
    /// What was expected.
    pub claim: String,
    /// What was found, in words.
    pub verdict: String,
    /// Whether it is what was expected; none if it is not known yet.
    pub holds: Option<bool>,
}

#[derive(Template)]
#[template(path = "study.html")]
struct Page<'a> {
    title: &'a str,
    facts: &'a [(String, String)],
    figures: Vec<Drawn<'a>>,
    settings: &'a str,
    colors: Vec<(String, String)>,
}

struct Drawn<'a> {
    name: &'a str,
    title: &'a str,
    source: &'a str,
    charts: Vec<(&'a str, String)>,
    tables: &'a [Table],
    findings: &'a [FindingReport],
}

impl StudyReport<'_> {
    /// One HTML page with all of it: light or dark as its reader's screen, readable on a telephone, with
    /// nothing to load but what its links name.
    ///
    /// # Errors
    /// [`ReportError::Draw`](crate::ReportError::Draw) and [`ReportError::Page`](crate::ReportError::Page).
    pub fn to_html(&self) -> Result<String> {
        let figures = self.figures.iter().map(|figure| {
            let charts = figure.charts.iter();
            let drawn = charts.map(|chart| Ok((chart.title(), chart.svg(CHART, false)?)));
            Ok(Drawn {
                name: &figure.name,
                title: &figure.title,
                source: &figure.source,
                charts: drawn.collect::<Result<_>>()?,
                tables: &figure.tables,
                findings: &figure.findings,
            })
        });
        let page = Page {
            title: self.title,
            facts: &self.facts,
            figures: figures.collect::<Result<_>>()?,
            settings: self.settings,
            colors: colors(),
        };
        Ok(page.render()?)
    }

    /// The figures in Markdown: the charts of [`Self::charts`] by their files' names, the tables, and what was
    /// expected.
    pub fn to_markdown(&self) -> String {
        let plain = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let mut text = format!("# {}\n\n", plain(self.title));
        for (name, value) in &self.facts {
            text += &format!("- {}: {}\n", plain(name), plain(value));
        }
        for figure in &self.figures {
            text += &format!("\n## {}\n\n", plain(&figure.title));
            if !figure.source.is_empty() {
                text += &format!("The paper's {}.\n\n", plain(&figure.source));
            }
            for (place, chart) in figure.charts.iter().enumerate() {
                let file = chart_file(&figure.name, place);
                text += &format!("![{}]({file})\n", plain(chart.title()));
            }
            for table in &figure.tables {
                let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
                text += &format!("\n{}\n\n", plain(&table.title));
                text += &row(table.head.iter().map(|name| plain(name)).collect());
                text += &row(vec!["---".to_owned(); table.head.len()]);
                for cells in &table.rows {
                    text += &row(cells.iter().map(|cell| plain(&cell.text)).collect());
                }
            }
            if !figure.findings.is_empty() {
                text.push('\n');
            }
            for FindingReport { claim, verdict, .. } in &figure.findings {
                text += &format!("- {}: **{}**\n", plain(claim), plain(verdict));
            }
        }
        text
    }

    /// Every chart as an SVG file, on white: its name, and what is in it.
    ///
    /// # Errors
    /// [`ReportError::Draw`](crate::ReportError::Draw).
    pub fn charts(&self) -> Result<Vec<(String, String)>> {
        let charts = self.figures.iter().flat_map(|figure| {
            let charts = figure.charts.iter().enumerate();
            charts.map(|(place, chart)| (chart_file(&figure.name, place), chart))
        });
        let white = |svg: String| match svg.find('>') {
            Some(end) => {
                let (head, rest) = svg.split_at(end + 1);
                format!(r##"{head}<rect width="100%" height="100%" fill="#ffffff"/>{rest}"##)
            }
            None => svg,
        };
        let drawn = |(name, chart): (String, &Chart)| Ok((name, white(chart.svg(CHART, true)?)));
        charts.map(drawn).collect()
    }
}

/// The name of the file of a figure's chart, counted from 0.
fn chart_file(figure: &str, place: usize) -> String {
    match place {
        0 => format!("{figure}.svg"),
        _ => format!("{figure}-{}.svg", place + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Series;
    use crate::canvas::color;
    use crate::chart::testing::{lines, near, place};

    fn report() -> StudyReport<'static> {
        let points = [(0.0, 50.0, 2.0), (1.0, 60.0, 0.5), (2.0, f64::NAN, 1.0)];
        let names = ["0", "0.5", "<1>"].map(str::to_owned).to_vec();
        StudyReport {
            title: "<Weights>",
            facts: vec![("runs".to_owned(), "6".to_owned())],
            figures: vec![FigureReport {
                name: "lambda".to_owned(),
                title: "What the weight does".to_owned(),
                source: "figure 8".to_owned(),
                charts: vec![
                    Chart::new("linear", "weight", "top-1 in %")
                        .x_names(names)
                        .y_range([0.0, 100.0])
                        .series(Series::with_deviations("PIRL", points)),
                ],
                tables: vec![Table {
                    title: "linear".to_owned(),
                    head: vec!["series".to_owned(), "0".to_owned()],
                    rows: vec![vec![
                        "PIRL & co".into(),
                        TableCell {
                            text: "50.0 ± 2.0".to_owned(),
                            links: vec![("0".to_owned(), "runs/a/network/report.html".to_owned())],
                        },
                    ]],
                }],
                findings: vec![FindingReport {
                    claim: "a half is best".to_owned(),
                    verdict: "holds".to_owned(),
                    holds: Some(true),
                }],
            }],
            settings: "seeds = [0]",
        }
    }

    #[test]
    fn a_page_has_charts_tables_and_verdicts_and_loads_nothing() {
        let page = report().to_html().unwrap();
        for part in [
            "<title>&#60;Weights&#62;</title>",
            "the paper's figure 8",
            "PIRL &#38; co",
            "50.0 ± 2.0 <a href=\"runs/a/network/report.html\">0</a>",
            "<li class=\"holds\"><strong>a half is best</strong> holds</li>",
            "seeds = [0]",
            "\n&lt;1&gt;\n</text>",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        for part in ["<script", "<img", " src=\"", "url(", "@import", "<link"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn markdown_has_the_tables_the_verdicts_and_the_charts_by_their_files() {
        let mut report = report();
        report.figures[0].charts.push(Chart::new("k-NN", "x", "y"));
        let text = report.to_markdown();
        for part in [
            "# <Weights>\n\n- runs: 6\n\n## What the weight does\n\nThe paper's figure 8.\n\n",
            "![linear](lambda.svg)\n![k-NN](lambda-2.svg)\n\nlinear\n\n| series | 0 |\n| --- | --- |\n",
            "| PIRL & co | 50.0 ± 2.0 |\n\n- a half is best: **holds**\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let charts = report.charts().unwrap();
        let names: Vec<&str> = charts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["lambda.svg", "lambda-2.svg"]);
        for (_, svg) in &charts {
            assert!(
                svg.starts_with("<svg ") && svg.contains("><rect width=\"100%\""),
                "{svg}"
            );
        }
    }

    #[test]
    fn a_deviation_is_a_bar_as_long_on_either_side() {
        let chart = &report().figures[0].charts[0];
        let svg = chart.svg((460, 300), false).unwrap();
        let drawn = lines(&svg, color(0));
        // Two bars, then the curve of the two points that are finite.
        assert_eq!(drawn.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
        let at = |x: f64, y: f64| place(&svg, [(x + 0.4) / 2.8, y / 100.0]);
        assert!(near(drawn[0][0], at(0.0, 48.0)) && near(drawn[0][1], at(0.0, 52.0)));
        assert!(near(drawn[2][0], at(0.0, 50.0)) && near(drawn[2][1], at(1.0, 60.0)));
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
