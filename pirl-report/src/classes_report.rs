//! The page of a classifier: what it takes for what, class by class, and how far its confidence is right.

use std::fmt::Write as _;
use std::path::Path;

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pirl_data::Image;
use pirl_eval::{Calibration, Classification, Confusion};

use crate::canvas::{Color, WHITE, color};
use crate::chart::Chart;
use crate::error::{ReportError, Result};
use crate::file::{make_folder, write};
use crate::font::Face;
use crate::page::{colors, hex};
use crate::png::png;
use crate::series::Series;

/// Up to so many classes the cells of a matrix have names and numbers; more are points of a picture.
const NAMED: usize = 30;
/// Side of a picture, in points, at most.
const POINTS: usize = 500;
/// Sides of a named cell, and the longest names beside them, pixels.
const CELL: (usize, usize) = (46, 26);
const NAME: usize = 130;
const LABEL: Face = Face::regular(12.0);
/// Rows of the table of pairs.
const CONFUSED: usize = 20;
/// Sides of the chart, pixels.
const CHART: (usize, usize) = (420, 300);
/// Width of the matrix on a page, pixels.
const WIDEST: usize = 700;

/// What a classifier takes for what, for people to look at.
#[derive(Clone, Debug)]
pub struct ClassesReport<'a> {
    /// Of the page.
    pub title: &'a str,
    /// What stands above the matrix, in a few words each: its name, and what it is.
    pub facts: Vec<(String, String)>,
    /// The classifier's answers.
    pub classification: &'a Classification,
}

#[derive(Template)]
#[template(path = "classes.html")]
struct Page<'a> {
    title: &'a str,
    facts: &'a [(String, String)],
    settings: &'a str,
    colors: Vec<(String, String)>,
    matrix: String,
    widest: usize,
    drawn_small: bool,
    block: usize,
    calibration: Option<String>,
    confused: Vec<Confused<'a>>,
    classes: Vec<Row<'a>>,
}

struct Confused<'a> {
    class: &'a str,
    predicted: &'a str,
    images: usize,
    share: String,
}

struct Row<'a> {
    name: &'a str,
    support: usize,
    recall: String,
    precision: String,
}

impl ClassesReport<'_> {
    /// Writes the page and the confusion matrix into `folder`, which is made if need be: `classes.html` and
    /// `confusion.csv`.
    ///
    /// # Errors
    /// As [`ClassesReport::to_html`]; [`ReportError::Io`]; [`ReportError::Eval`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        write(&folder.join("classes.html"), self.to_html()?.as_bytes())?;
        let matrix = self.classification.confusion.to_csv()?;
        write(&folder.join("confusion.csv"), &matrix)
    }

    /// One HTML page: the confusion matrix (of up to 30 classes with names and numbers, of more as a picture),
    /// the pairs of classes that are confused most, the reliability diagram, and recall, precision and images of
    /// every class, with the share of right ones and the expected calibration error. Light or dark as its reader's screen, with nothing to load.
    ///
    /// # Errors
    /// [`ReportError::Empty`] without classes; [`ReportError::Draw`] and [`ReportError::Page`].
    pub fn to_html(&self) -> Result<String> {
        let Classification {
            per_class,
            calibration,
            confusion,
        } = self.classification;
        let names = confusion.classes();
        if names.is_empty() {
            return Err(ReportError::Empty {
                picture: "a confusion matrix",
                expected: "at least 1 class",
            });
        }
        let totals = totals(confusion);
        let drawn_small = names.len() > NAMED;
        let block = names.len().div_ceil(POINTS);
        let percent = |part: Option<f64>| part.map_or("-".to_owned(), |part| format!("{part:.1}"));
        let mut classes: Vec<_> = per_class.iter().collect();
        let recall = |of: &pirl_eval::ClassAccuracy| of.recall.unwrap_or(f64::INFINITY);
        classes.sort_by(|a, b| recall(a.1).total_cmp(&recall(b.1)));
        let classes = classes.into_iter().map(|(name, of)| Row {
            name,
            support: of.support,
            recall: percent(of.recall),
            precision: percent(of.precision),
        });
        let confused = confusion.most_confused(CONFUSED).into_iter();
        let confused = confused.map(|cell| Confused {
            class: &names[cell.class],
            predicted: &names[cell.predicted],
            images: cell.images,
            share: format!(
                "{:.1} %",
                100.0 * cell.images as f64 / totals[cell.class] as f64
            ),
        });
        let right = confusion.cells().iter();
        let right = right.filter(|cell| cell.class == cell.predicted);
        let right: usize = right.map(|cell| cell.images).sum();
        let top1 = 100.0 * right as f64 / totals.iter().sum::<usize>().max(1) as f64;
        let mut facts = self.facts.clone();
        facts.push(("top-1".to_owned(), format!("{top1:.1} %")));
        facts.extend(calibration.as_ref().map(|calibration| {
            let ece = format!("{:.1} %", calibration.ece);
            ("expected calibration error".to_owned(), ece)
        }));
        let calibration = calibration.as_ref().map(reliability);
        let page = Page {
            title: self.title,
            facts: &facts,
            settings: "",
            colors: colors(),
            matrix: match drawn_small {
                true => picture(confusion, &totals, block)?,
                false => matrix(confusion, &totals),
            },
            widest: WIDEST,
            drawn_small,
            block,
            calibration: calibration
                .map(|chart| chart.svg(CHART, false))
                .transpose()?,
            confused: confused.collect(),
            classes: classes.collect(),
        };
        Ok(page.render()?)
    }
}

/// Images of each class.
fn totals(confusion: &Confusion) -> Vec<usize> {
    let mut totals = vec![0; confusion.classes().len()];
    for cell in confusion.cells() {
        totals[cell.class] += cell.images;
    }
    totals
}

/// Accuracy by confidence, beside what it would be if it were deserved.
fn reliability(calibration: &Calibration) -> Chart {
    let bins = calibration.bins.iter();
    let points = bins.map(|bin| (bin.confidence, bin.accuracy));
    let ends = [0.0, 100.0];
    Chart::new("Calibration", "confidence, %", "accuracy, %")
        .x_range(ends)
        .y_range(ends)
        .series(Series::new("accuracy", points))
        .series(Series::new("if deserved", [(0.0, 0.0), (100.0, 100.0)]))
}

/// A matrix with names and numbers, as SVG.
fn matrix(confusion: &Confusion, totals: &[usize]) -> String {
    let names = confusion.classes();
    let (wide, high) = CELL;
    let widths = names.iter().map(|name| LABEL.width(name).ceil() as usize);
    let name = widths.fold(0, usize::max).min(NAME) + 10;
    let side = |cell: usize| name + names.len() * cell;
    let short = |text: &str| escaped(&LABEL.shorten(text, NAME as f32));
    let (ink, white, hue) = (hex(crate::canvas::INK), hex(WHITE), hex(color(0)));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-size=\"12\" role=\"img\" \
         aria-label=\"confusion matrix\">\n",
        side(wide) + 4,
        side(high) + 4
    );
    for (place, class) in names.iter().enumerate() {
        let (x, y) = (
            name + place * wide + wide / 2,
            name + place * high + high / 2,
        );
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{ink}\">{}</text>",
            name - 6,
            y + 4,
            short(class)
        );
        let _ = writeln!(
            svg,
            "<text transform=\"translate({},{}) rotate(-90)\" fill=\"{ink}\">{}</text>",
            x + 4,
            name - 6,
            short(class)
        );
    }
    for cell in confusion.cells() {
        let (x, y) = (name + cell.predicted * wide, name + cell.class * high);
        let share = cell.images as f64 / totals[cell.class] as f64;
        let text = if share > 0.6 { &white } else { &ink };
        let [class, predicted] = [cell.class, cell.predicted].map(|at| escaped(&names[at]));
        let _ = writeln!(
            svg,
            "<g><title>{class} taken for {predicted}: {images} images, {percent:.1} %</title>\
             <rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"2\" fill=\"{hue}\" \
             fill-opacity=\"{opacity:.3}\"/>\
             <text x=\"{middle}\" y=\"{line}\" text-anchor=\"middle\" fill=\"{text}\">{images}</text></g>",
            images = cell.images,
            percent = 100.0 * share,
            w = wide - 2,
            h = high - 2,
            opacity = 0.06 + 0.94 * share,
            middle = x + wide / 2 - 1,
            line = y + high / 2 + 3,
        );
    }
    svg + "</svg>"
}

/// A matrix of many classes as a picture: a point is the largest share of `block` by `block` cells.
fn picture(confusion: &Confusion, totals: &[usize], block: usize) -> Result<String> {
    let side = confusion.classes().len().div_ceil(block);
    let mut shares = vec![0f64; side * side];
    for cell in confusion.cells() {
        let share = cell.images as f64 / totals[cell.class] as f64;
        let point = &mut shares[cell.class / block * side + cell.predicted / block];
        *point = point.max(share);
    }
    let hue = color(0);
    // A root, since shares of a hundredth are what one looks for.
    let shade = |share: f64| -> Color {
        let share = share.sqrt();
        [0, 1, 2].map(|at| {
            let [from, to] = [WHITE[at], hue[at]].map(f64::from);
            (from + share * (to - from)).round() as u8
        })
    };
    let pixels = shares.into_iter().flat_map(shade).collect();
    let bytes = png(&Image::new(side, side, pixels)?)?;
    Ok(format!(
        "<img alt=\"confusion matrix of {} classes\" src=\"data:image/png;base64,{}\">",
        confusion.classes().len(),
        BASE64_STANDARD.encode(bytes)
    ))
}

/// As the text of an element.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use pirl_eval::Prediction;

    use super::*;
    use crate::chart::testing::lines;

    /// Every third image of a class is taken for the next, with less confidence.
    fn classification(classes: u32) -> Classification {
        let names = (0..classes).map(|class| format!("<class> {class}"));
        let predictions = (0..12 * classes).map(|image| {
            let (label, wrong) = (image / 12, image % 3 == 0);
            Prediction {
                label,
                predicted: (label + u32::from(wrong)) % classes,
                confidence: Some(if wrong { 0.45 } else { 0.95 }),
            }
        });
        let predictions: Vec<Prediction> = predictions.collect();
        Classification::new(&predictions, &names.collect::<Vec<_>>()).unwrap()
    }

    fn page(classes: u32) -> String {
        let report = ClassesReport {
            title: "runs/photos on TEST",
            facts: vec![("classes".to_owned(), classes.to_string())],
            classification: &classification(classes),
        };
        report.to_html().unwrap()
    }

    #[test]
    fn a_few_classes_have_their_numbers_in_cells() {
        let page = page(10);
        assert!(page.contains("<title>runs/photos on TEST</title>") && page.contains("66.7 %"));
        let hue = hex(color(0));
        let dark = format!("fill=\"{hue}\" fill-opacity=\"0.687\"");
        let light = format!("fill=\"{hue}\" fill-opacity=\"0.373\"");
        assert_eq!(page.matches(&dark).count(), 10, "{page}");
        assert_eq!(page.matches(&light).count(), 10);
        let title = "&lt;class&gt; 9 taken for &lt;class&gt; 0: 4 images, 33.3 %";
        assert!(page.contains(title));
        assert!(!page.contains("<class>") && !page.contains("<img"));
        // Least found first; all are found alike, so by their names.
        let rows = page.split("recall, %").nth(1).unwrap();
        assert!(rows.contains("<td>12</td><td>66.7</td><td>66.7</td>"));
        // (45, 0) and (95, 100): 5 and 45 points apart.
        let error = "<dt>expected calibration error</dt><dd>18.3 %</dd>";
        assert!(page.contains(error) && page.contains("<dt>top-1</dt><dd>66.7 %</dd>"));
        assert_eq!(lines(&page, color(0)).len(), 1);
    }

    #[test]
    fn many_classes_are_points_of_a_picture() {
        let large = page(1000);
        assert!(large.len() < 400_000, "{}", large.len());
        let data = large.split("base64,").nth(1).unwrap();
        let bytes = BASE64_STANDARD.decode(data.split('"').next().unwrap());
        let image = Image::decode(&bytes.unwrap()).unwrap();
        assert_eq!((image.width, image.height), (500, 500));
        // Class 1 is taken for class 2, which is in the next point.
        let at = |x, y| image.pixel(x, y).unwrap();
        assert!(at(0, 0)[0] < at(1, 0)[0] && at(1, 0)[0] < 255);
        assert_eq!(at(0, 1), WHITE);
        assert_eq!(
            at(0, 499),
            at(1, 0),
            "the last class is taken for the first"
        );
        assert!(large.contains("up to 2 classes wide"));
        let confused = large.split("Most confused").nth(1).unwrap();
        let confused = confused.split("</table>").next().unwrap();
        assert_eq!(confused.matches("<tr><td").count(), CONFUSED);
        assert!(page(31).contains("<img") && !page(30).contains("<img"));
    }

    #[test]
    fn without_confidence_there_is_no_diagram_and_without_classes_no_page() {
        let names = ["a".to_owned()];
        let prediction = Prediction {
            label: 0,
            predicted: 0,
            confidence: None,
        };
        let page = |classification: &Classification| {
            let report = ClassesReport {
                title: "",
                facts: Vec::new(),
                classification,
            };
            report.to_html()
        };
        let text = page(&Classification::new(&[prediction], &names).unwrap()).unwrap();
        assert!(!text.contains("Calibration") && !text.contains("Most confused"));
        assert!(page(&Classification::new(&[], &[]).unwrap()).is_err());
        let unseen = Classification::new(&[], &names).unwrap();
        assert!(
            page(&unseen)
                .unwrap()
                .contains("<td>0</td><td>-</td><td>-</td>")
        );
    }
}
