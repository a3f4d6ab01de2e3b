//! What a detector found, to look at: boxes on images, and curves of precision and recall.

use pirl_core::SettingError;
use pirl_data::draw::{Canvas, INK, LETTER, PAPER, color, contact_sheet, fit};
use pirl_data::{Image, Objects};

use super::detection::{Detection, check};
use super::voc_metrics::VocReport;
use crate::chart::Chart;
use crate::error::Result;

/// Longer side of an image on a sheet, pixels.
const PANEL: usize = 320;
const GAP: usize = 6;
/// Length of a dash around an annotated object, pixels.
const DASH: usize = 4;

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
/// [`EvalError`](crate::EvalError): `Setting` without panels; `Label`, `Shape` for a class that has no
/// name or a detection that is not finite; `Data` for an image whose number of pixels is not that of
/// its sides.
pub fn detection_sheet(
    panels: &[DetectionPanel<'_>],
    classes: &[String],
    least_score: f32,
) -> Result<Image> {
    if panels.is_empty() {
        return Err(SettingError::new("panels", "[]", "must be at least one").into());
    }
    let mut drawn = Vec::with_capacity(panels.len());
    for panel in panels {
        let found = panel.detections.to_vec();
        check(&[found], std::slice::from_ref(panel.objects), classes.len())?;
        drawn.push(draw(panel, classes, least_score)?);
    }
    let columns = panels.len().isqrt().clamp(1, 6);
    Ok(contact_sheet(&drawn, columns, GAP))
}

fn draw(panel: &DetectionPanel<'_>, classes: &[String], least_score: f32) -> Result<Image> {
    let (image, scale) = fit(panel.image, PANEL)?;
    let mut canvas = Canvas::on(image)?;
    let scaled = |bounds: [f32; 4]| bounds.map(|x| f64::from(x) * scale);
    for (bounds, _, _) in panel.objects.iter() {
        canvas.outline(scaled(bounds), 1, 0, INK);
        canvas.outline(scaled(bounds), 1, DASH, PAPER);
    }
    let shown = panel.detections.iter().filter(|f| f.score >= least_score);
    let mut shown: Vec<&Detection> = shown.collect();
    shown.sort_by(|a, b| a.score.total_cmp(&b.score));
    for found in shown {
        let bounds = clamp(scaled(found.bbox));
        let hue = color(found.label);
        canvas.outline(bounds, 2, 0, hue);
        let tag = format!("{} {:.2}", classes[found.label], found.score);
        // Above the box, or inside where the image ends.
        let high = (LETTER + 2) as i64;
        let top = bounds[1].max(0.0) as i64;
        let top = if top >= high { top - high } else { top };
        canvas.tag((bounds[0].max(0.0) as i64, top), &tag, hue);
    }
    Ok(canvas.into_image())
}

/// So that boxes far out of the image take no time.
fn clamp(bounds: [f64; 4]) -> [f64; 4] {
    let far = PANEL as f64 + 8.0;
    bounds.map(|x| x.clamp(-8.0, far))
}

/// The precision at each recall of every class, at the IoU threshold 0.50, with its average
/// precision.
pub fn precision_recall_chart(report: &VocReport) -> Image {
    let names = report.per_class.keys().map(|name| name.chars().count());
    let letters = names.max().unwrap_or(0).max(LETTER) + 8;
    let lines = report.per_class.len() + 2;
    let mut chart = Chart::new(("recall", "precision"), (1.0, 1.0), (lines, letters));
    chart.legend(&format!("{:5.1} AP50, mean", report.ap50), None);
    for (index, (name, class)) in report.per_class.iter().enumerate() {
        let hue = color(index);
        chart.legend(&format!("{:5.1} {name}", class.ap50), Some(hue));
        let points = class.curve.recall.iter().zip(&class.curve.precision);
        chart.curve(points.map(|(&recall, &precision)| (recall, precision)), hue);
    }
    chart.into_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::{MARGIN, PLOT};
    use crate::detect::{DetectMetric, voc_metrics};

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
        assert_eq!((sheet.width, sheet.height), (646, 780)); // 2 by 3 panels
        // Four pixels of the panel to one of the image.
        assert_eq!(sheet.pixel(150, 64), Some(color(1)), "upper edge");
        assert_eq!(sheet.pixel(64, 100), Some(color(1)), "left edge");
        assert_eq!(sheet.pixel(255, 100), Some(color(1)), "right edge");
        assert_eq!(sheet.pixel(150, 100), Some([120; 3]), "inside");
        let edge: Vec<_> = (32..288).filter_map(|x| sheet.pixel(x, 160)).collect();
        assert!(edge.contains(&PAPER) && edge.contains(&INK), "dashes");
        assert_eq!(sheet.pixel(326 + 64, 100), Some(color(1)), "second panel");
        assert_eq!(sheet.pixel(400, 700), Some(PAPER), "no sixth panel");
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
        let chart = precision_recall_chart(&report);
        for (recall, precision) in [(0.5, 1.0), (0.5, 0.75), (0.5, 0.5), (1.0, 2.0 / 3.0)] {
            let x = MARGIN + (recall * PLOT as f64) as usize;
            let y = MARGIN + PLOT - (precision * PLOT as f64).round() as usize;
            assert_eq!(chart.pixel(x, y), Some(color(0)), "{recall}, {precision}");
        }
        let empty = voc_metrics(&[], &[], &[], DetectMetric::Area).unwrap();
        assert!(precision_recall_chart(&empty).width > PLOT);
    }
}
