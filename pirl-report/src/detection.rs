//! What a detector found, to look at: boxes on images, and curves of precision and recall.

use std::path::Path;

use pirl_data::{Image, Objects, Pack};
use pirl_eval::detect::{CocoResult, DetectReport, Detection, VocReport};
use serde_json::json;

use crate::canvas::{Canvas, FAINT, INK, WHITE, color, tag_height};
use crate::chart::Chart;
use crate::error::{ReportError, Result};
use crate::file::{write, write_png};
use crate::font::Face;
use crate::series::Series;
use crate::sheet::{caption, contact_sheet, framed, panel};

/// Longer side of an image on a sheet, pixels, at most.
const PANEL: usize = 320;
const GAP: usize = 8;
/// Pixels around the sheet.
const FRAME: usize = 12;
/// Length of a dash around an annotated object, pixels.
const DASH: usize = 4;
/// Class and score of a detection.
const TAG: Face = Face::bold(11.0);
/// What the boxes are.
const LEGEND: Face = Face::regular(12.0);

/// An image with what is annotated and what was found there, in its pixels.
#[derive(Clone, Copy, Debug)]
pub struct DetectionPanel<'a> {
    /// The image.
    pub image: &'a Image,
    /// Drawn in white dashes.
    pub objects: &'a Objects,
    /// Drawn in the colour of their class, with its name and the score.
    pub detections: &'a [Detection],
}

/// A contact sheet: images side by side with their objects, and the detections of at least
/// `least_score`, higher scores above lower ones.
///
/// # Errors
/// [`ReportError::Empty`] without panels; [`ReportError::Class`], [`ReportError::NotFinite`] for a detection
/// whose class has no name or that is not finite; [`ReportError::Data`] for an image whose number of pixels
/// is not that of its sides; [`ReportError::TooLarge`].
pub fn detection_sheet(
    panels: &[DetectionPanel<'_>],
    classes: &[String],
    least_score: f32,
) -> Result<Image> {
    if panels.is_empty() {
        return Err(ReportError::Empty {
            picture: "a sheet of detections",
            expected: "at least 1 image",
        });
    }
    let drawn = panels.iter().map(|panel| draw(panel, classes, least_score));
    let drawn: Vec<Image> = drawn.collect::<Result<_>>()?;
    let sheet = contact_sheet(&drawn, panels.len().isqrt().clamp(1, 6), GAP)?;
    let legend = format!(
        "dashed: annotated; in colours: found, with class and score, of at least {least_score:.2}"
    );
    framed(&caption(&sheet, &legend, LEGEND, FAINT)?, FRAME)
}

/// Writes what a detector found in the images of `pack` into `folder`, for COCO's tools and to look at:
/// `detections.json`, `precision_recall.png`, and `detections.png`, a [`detection_sheet`] of at most 24 images,
/// evenly over the pack, with the detections of a score of at least 0.5.
///
/// # Errors
/// As [`detection_sheet`] and [`precision_recall_chart`]; [`ReportError::Data`] for an image that does not
/// decode; [`ReportError::Io`].
pub fn write_detections(folder: &Path, pack: &Pack, report: &DetectReport) -> Result<()> {
    let found = json!(CocoResult::of(&report.detections)).to_string();
    write(&folder.join("detections.json"), found.as_bytes())?;
    let curves = precision_recall_chart(&report.voc)?;
    write_png(&folder.join("precision_recall.png"), &curves)?;
    let sample = sample(pack, &report.detections)?;
    write_png(&folder.join("detections.png"), &sample)
}

fn sample(pack: &Pack, detections: &[Vec<Detection>]) -> Result<Image> {
    const SHOWN: usize = 24;
    const LEAST_SCORE: f32 = 0.5;
    let count = pack.len().min(SHOWN);
    let shown: Vec<(Image, Objects, &[Detection])> = (0..count)
        .map(|place| {
            let index = place * pack.len() / count;
            let objects = pack.objects(index).unwrap_or_default();
            let found = detections.get(index).map_or(&[][..], Vec::as_slice);
            Ok((pack.decode(index)?, objects, found))
        })
        .collect::<Result<_>>()?;
    let panels: Vec<DetectionPanel> = shown
        .iter()
        .map(|(image, objects, detections)| DetectionPanel {
            image,
            objects,
            detections,
        })
        .collect();
    detection_sheet(&panels, pack.class_names(), LEAST_SCORE)
}

fn draw(panel: &DetectionPanel<'_>, classes: &[String], least_score: f32) -> Result<Image> {
    let (image, scale) = self::panel(panel.image, PANEL)?;
    let mut canvas = Canvas::on(image)?;
    let scaled = |bounds: [f32; 4]| bounds.map(|x| f64::from(x) * scale);
    for (bounds, _, _) in panel.objects.iter() {
        canvas.outline(scaled(bounds), 1, 0, INK)?;
        canvas.outline(scaled(bounds), 1, DASH, WHITE)?;
    }
    check(panel.detections, classes)?;
    let shown = panel.detections.iter().filter(|f| f.score >= least_score);
    let mut shown: Vec<&Detection> = shown.collect();
    shown.sort_by(|a, b| a.score.total_cmp(&b.score));
    for found in shown {
        let bounds = scaled(found.bbox);
        let hue = color(found.label);
        canvas.outline(bounds, 2, 0, hue)?;
        let text = format!("{} {:.2}", classes[found.label], found.score);
        // Above the box, or inside where the image ends.
        let high = tag_height(TAG) as f64;
        let top = if bounds[1] >= high {
            bounds[1] - high
        } else {
            bounds[1]
        };
        canvas.tag((bounds[0] as i64, top as i64), &text, TAG, hue)?;
    }
    Ok(canvas.into_image())
}

fn check(detections: &[Detection], classes: &[String]) -> Result<()> {
    for found in detections {
        if found.label >= classes.len() {
            return Err(ReportError::Class {
                label: found.label,
                classes: classes.len(),
            });
        }
        if !found
            .bbox
            .iter()
            .chain([&found.score])
            .all(|x| x.is_finite())
        {
            return Err(ReportError::NotFinite {
                bounds: found.bbox,
                score: found.score,
            });
        }
    }
    Ok(())
}

/// Sides of the chart of precision and recall, pixels of a plain screen.
const CHART: (usize, usize) = (720, 470);

/// The precision at each recall of every class, at the IoU threshold 0.50, in the order of their average
/// precision, which stands beside their names.
///
/// # Errors
/// [`ReportError::Draw`].
pub fn precision_recall_chart(report: &VocReport) -> Result<Image> {
    curves(report).to_image(CHART.0, CHART.1)
}

fn curves(report: &VocReport) -> Chart {
    let mut chart = Chart::new(
        "Precision and recall",
        "recall",
        "precision, at an IoU of 0.50",
    )
    .x_range([0.0, 1.0])
    .y_range([0.0, 1.0])
    .legend_beside()
    .note(format!("{:.1} AP50, mean", report.ap50));
    let mut classes: Vec<_> = report.per_class.iter().collect();
    classes.sort_by(|a, b| b.1.ap50.total_cmp(&a.1.ap50));
    for (name, class) in classes {
        let points = class.curve.recall.iter().zip(&class.curve.precision);
        let points = points.map(|(&recall, &precision)| (recall, precision));
        chart = chart.series(Series::new(format!("{:.1} {name}", class.ap50), points));
    }
    chart
}

#[cfg(test)]
mod tests {
    use pirl_eval::detect::{DetectMetric, voc_metrics};

    use super::*;
    use crate::canvas::PAPER;
    use crate::chart::testing::{lines, near, pixel, place};
    use crate::sheet::caption_height;

    fn grey(width: usize, height: usize) -> Image {
        Image::new(width, height, vec![120; 3 * width * height]).unwrap()
    }

    fn found(bbox: [f32; 4], label: usize, score: f32) -> Detection {
        Detection { bbox, label, score }
    }

    fn names() -> Vec<String> {
        ["cat", "dog"].map(str::to_owned).to_vec()
    }

    #[test]
    fn boxes_lie_where_they_were_found() {
        let mut objects = Objects::default();
        objects.push([8.0, 40.0, 72.0, 56.0], 0, false);
        let image = grey(80, 64);
        let detections = [
            found([16.0, 16.0, 64.0, 32.0], 1, 0.9),
            found([2.0, 2.0, 70.0, 60.0], 0, 0.1), // below the least score
            found([-1e9, 1.0, 1e9, 1e30], 0, 0.8),
        ];
        let panel = DetectionPanel {
            image: &image,
            objects: &objects,
            detections: &detections,
        };
        let sheet = detection_sheet(&[panel; 5], &names(), 0.5).unwrap();
        // 2 by 3 panels of 320 by 256.
        let top = FRAME + caption_height(LEGEND);
        let sides = (2 * FRAME + 640 + GAP, FRAME + top + 3 * 256 + 2 * GAP);
        assert_eq!((sheet.width, sheet.height), sides);
        // Four pixels of the panel to one of the image.
        let pixel = |x: usize, y: usize| sheet.pixel(FRAME + x, top + y);
        assert_eq!(pixel(200, 64), Some(color(1)), "upper edge");
        assert_eq!(pixel(64, 100), Some(color(1)), "left edge");
        assert_eq!(pixel(255, 100), Some(color(1)), "right edge");
        assert_eq!(pixel(200, 100), Some([120; 3]), "inside");
        assert_eq!(pixel(65, 60), Some(color(1)), "the class, above the box");
        assert_eq!(pixel(65, 36), Some([120; 3]), "nothing above that");
        let edge: Vec<_> = (32..288).filter_map(|x| pixel(x, 160)).collect();
        assert!(edge.contains(&WHITE) && edge.contains(&INK), "dashes");
        assert_eq!(pixel(320 + GAP + 64, 100), Some(color(1)), "second panel");
        assert_eq!(pixel(400, 700), Some(PAPER), "no sixth panel");
        for x in 0..sheet.width {
            assert_eq!(sheet.pixel(x, sheet.height - 2), Some(PAPER), "outside");
        }
    }

    #[test]
    fn odd_images_boxes_and_names_stay_inside() {
        let names = vec![
            "sehr lange \u{1f415} Hunde ".repeat(50),
            String::new(),
            "\u{72ac}".to_owned(),
        ];
        let mut objects = Objects::default();
        objects.push([-1e30, 0.5, f32::INFINITY, 0.2], 9, true);
        for (width, height) in [(1, 1), (1, 700), (700, 1), (33, 20)] {
            let image = grey(width, height);
            let detections: Vec<Detection> = (0..3)
                .flat_map(|label| {
                    let far = f32::MAX;
                    [
                        [0.0; 4],
                        [far, far, -far, -far],
                        [-far, -far, far, far],
                        [0.4, 0.3, 0.6, 0.9],
                    ]
                    .map(|bounds| found(bounds, label, 0.7))
                })
                .collect();
            let panel = DetectionPanel {
                image: &image,
                objects: &objects,
                detections: &detections,
            };
            let sheet = detection_sheet(&[panel; 2], &names, 0.0).unwrap();
            assert!(sheet.width <= 320 + 2 * FRAME && sheet.height <= 700);
            for y in 0..sheet.height {
                assert_eq!(sheet.pixel(FRAME - 1, y), Some(PAPER), "{width} x {height}");
            }
        }
    }

    #[test]
    fn sheets_of_nothing_or_of_unknown_classes_are_refused() {
        assert!(detection_sheet(&[], &names(), 0.5).is_err());
        let (image, objects) = (grey(3, 500), Objects::default());
        for bad in [
            found([0.0, 0.0, 1.0, 1.0], 2, 0.9),
            found([0.0, f32::NAN, 1.0, 1.0], 0, 0.9),
        ] {
            let panel = DetectionPanel {
                image: &image,
                objects: &objects,
                detections: &[bad],
            };
            assert!(detection_sheet(&[panel], &names(), 0.5).is_err());
        }
        let panel = DetectionPanel {
            image: &image,
            objects: &objects,
            detections: &[],
        };
        assert!(detection_sheet(&[panel], &[], 0.5).is_ok());
    }

    #[test]
    fn curves_pass_through_their_points() {
        let (a, b) = ([0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0]);
        let mut objects = Objects::default();
        objects.push(a, 0, false);
        objects.push(b, 0, false);
        // Right, wrong, right: (0.5, 1), (0.5, 0.5), (1, 2/3).
        let detections = vec![found(a, 0, 0.9), found(a, 0, 0.8), found(b, 0, 0.7)];
        let report = voc_metrics(&[detections], &[objects], &names(), DetectMetric::Area).unwrap();
        let svg = curves(&report).to_svg(CHART.0, CHART.1).unwrap();
        let image = precision_recall_chart(&report).unwrap();
        let [cat] = &lines(&svg, color(0))[..] else {
            panic!("{svg}");
        };
        for (at, point) in [[0.5, 1.0], [0.5, 0.5], [1.0, 2.0 / 3.0]]
            .into_iter()
            .enumerate()
        {
            assert!(near(cat[at], place(&svg, point)), "{point:?}: {cat:?}");
        }
        for point in [[0.5, 0.98], [0.5, 0.75], [0.75, 7.0 / 12.0]] {
            assert_eq!(pixel(&image, place(&svg, point)), color(0), "{point:?}");
        }
        // By their average precision: the dog, which nobody looked for, comes last.
        let names = [svg.find("83.3 cat"), svg.find("0.0 dog")];
        assert!(names[0].is_some() && names[0] < names[1], "{svg}");
        assert!(svg.contains("41.7 AP50, mean"));
        let empty = voc_metrics(&[], &[], &[], DetectMetric::Area).unwrap();
        let chart = precision_recall_chart(&empty).unwrap();
        assert_eq!((chart.width, chart.height), (2 * CHART.0, 2 * CHART.1));
    }

    #[test]
    fn three_hundred_classes_fit_on_a_chart() {
        let names: Vec<String> = (0..300).map(|class| format!("class {class}")).collect();
        let report = voc_metrics(&[vec![]], &[Objects::default()], &names, DetectMetric::Area);
        let svg = curves(&report.unwrap()).to_svg(CHART.0, CHART.1).unwrap();
        let named = svg.matches("class ").count();
        assert!((15..30).contains(&named) && svg.contains(&format!("and {} more", 300 - named)));
    }
}
