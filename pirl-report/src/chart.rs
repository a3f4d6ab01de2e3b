//! Curves between two axes, as SVG or as an image.
//!
//! Everything is drawn in units of a fourth of a pixel: plotters counts in whole units, so curves are that
//! much smoother, in an SVG because it is shrunk by its view box and in an image because it is resized.

use std::ops::Range;

use pirl_data::Image;
use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::Circle;
use plotters::series::{AreaSeries, DashedLineSeries, LineSeries};
use plotters::style::{Color as _, ShapeStyle};
use plotters_backend::DrawingBackend;

use crate::canvas::{COLORS, Canvas, Color, FAINT, INK, WHITE, color};
use crate::error::{ReportError, Result};
use crate::font::Face;
use crate::pen::{Drawn, Entry, LABEL, Pen, UNITS, rgb, style};
use crate::raster::Raster;
use crate::series::{Series, thinned};
use crate::sheet::resize_to;
use crate::ticks::{Ticks, spread};

/// Pixels of an image for one of the chart: images are made for screens of high density.
const DENSITY: usize = 2;
/// Sides of a chart, pixels.
const SIDES: Range<usize> = 160..4096;

/// Lines between the labels of the axes.
pub(crate) const GRID: Color = [0xe3, 0xe6, 0xea];
/// The axes themselves.
pub(crate) const AXIS: Color = [0x9a, 0xa1, 0xac];

const TITLE: Face = Face::bold(15.0);
/// Pixels around a chart.
const MARGIN: usize = 14;
/// Height of a line of the legend, pixels.
const LINE: usize = 19;
/// Lines that a legend above the curves takes, at most.
const LINES: usize = 5;
/// Pixels between entries of a legend.
const BETWEEN: usize = 16;

/// Curves between two axes, with a title and a legend.
///
/// ```
/// use pirl_report::{Chart, Series};
///
/// let falling = (1..=100).map(|step| (f64::from(step), 5.0 / f64::from(step)));
/// let chart = Chart::new("Loss", "step", "nats").series(Series::new("total", falling));
/// let svg = chart.to_svg(440, 280)?;
/// assert!(svg.starts_with("<svg") && svg.contains("Loss"));
/// let image = chart.to_image(440, 280)?; // for screens of high density
/// assert_eq!((image.width, image.height), (880, 560));
/// # Ok::<(), pirl_report::ReportError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    title: String,
    x_label: String,
    y_label: String,
    x_range: Option<[f64; 2]>,
    y_range: Option<[f64; 2]>,
    beside: bool,
    note: String,
    x_names: Vec<String>,
    series: Vec<Series>,
}

impl Chart {
    /// A chart without curves, of this title and these names of the axes, with their units.
    pub fn new(
        title: impl Into<String>,
        x_label: impl Into<String>,
        y_label: impl Into<String>,
    ) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            x_range: None,
            y_range: None,
            beside: false,
            note: String::new(),
            x_names: Vec::new(),
            series: Vec::new(),
        }
    }

    /// Adds a curve; its colour is that of its place.
    #[must_use]
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// The ends of the horizontal axis, which otherwise are those of the curves; curves are cut there.
    #[must_use]
    pub fn x_range(self, range: [f64; 2]) -> Self {
        Self {
            x_range: Some(range),
            ..self
        }
    }

    /// Names on the horizontal axis, at 0, 1, 2, ..., instead of numbers; every point then is a dot.
    #[must_use]
    pub fn x_names(self, names: Vec<String>) -> Self {
        Self {
            x_names: names,
            ..self
        }
    }

    /// The ends of the vertical axis, which otherwise are round numbers around the curves; curves are cut
    /// there.
    #[must_use]
    pub fn y_range(self, range: [f64; 2]) -> Self {
        Self {
            y_range: Some(range),
            ..self
        }
    }

    /// Puts the legend beside the curves, a line for each, and not above them. One above them is left out
    /// where there is a single curve.
    #[must_use]
    pub fn legend_beside(self) -> Self {
        Self {
            beside: true,
            ..self
        }
    }

    /// Words before the legend.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }

    /// What the chart is about.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// An SVG of this size in pixels (160 to 4095 a side, others are made so), on no ground of its own.
    ///
    /// # Errors
    /// [`ReportError::Draw`].
    pub fn to_svg(&self, width: usize, height: usize) -> Result<String> {
        self.svg((width, height), true)
    }

    pub(crate) fn svg(&self, size: (usize, usize), titled: bool) -> Result<String> {
        use plotters::backend::SVGBackend;

        let size = bounded(size);
        let (wide, high) = ((size.0 * UNITS) as u32, (size.1 * UNITS) as u32);
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (wide, high)).into_drawing_area();
        self.draw(&area, size, titled)?;
        drop(area);
        let units = format!("width=\"{wide}\" height=\"{high}\"");
        let pixels = format!("width=\"{}\" height=\"{}\"", size.0, size.1);
        Ok(svg.replacen(&units, &pixels, 1))
    }

    /// An image of this size in pixels (160 to 4095 a side, others are made so) of a plain screen, with twice
    /// as many pixels along each side.
    ///
    /// # Errors
    /// [`ReportError::Draw`].
    pub fn to_image(&self, width: usize, height: usize) -> Result<Image> {
        let size = bounded((width, height));
        let (wide, high) = (size.0 * UNITS, size.1 * UNITS);
        let mut image = Canvas::of(wide, high, WHITE)?.into_image();
        let area = Raster::new(&mut image.pixels, wide, high)?.into_drawing_area();
        self.draw(&area, size, true)?;
        drop(area);
        resize_to(&image, size.0 * DENSITY, size.1 * DENSITY)
    }

    fn draw<D: DrawingBackend>(
        &self,
        area: &DrawingArea<D, Shift>,
        size: (usize, usize),
        titled: bool,
    ) -> Result<()> {
        let failed = |error: DrawingAreaErrorKind<D::ErrorType>| ReportError::Draw {
            what: format!("the chart {:?}", self.title),
            reason: error.to_string(),
        };
        self.try_draw(area, size, titled).map_err(failed)
    }

    fn try_draw<D: DrawingBackend>(
        &self,
        area: &DrawingArea<D, Shift>,
        size: (usize, usize),
        titled: bool,
    ) -> std::result::Result<(), DrawingAreaErrorKind<D::ErrorType>> {
        let pen = Pen(area);
        let room = size.0 - 2 * MARGIN;
        let mut top = MARGIN;
        if titled && !self.title.is_empty() {
            pen.text((MARGIN, top), room, &self.title, TITLE, INK)?;
            top += TITLE.line() + 5;
        }
        let mut right = MARGIN;
        if self.beside {
            right += self.draw_legend_beside(&pen, (top, size.1 - MARGIN), size.0)?;
        } else {
            top += self.draw_legend_above(&pen, top, room)?;
        }
        let named = (MARGIN, top);
        pen.text(named, room, &self.y_label, LABEL, FAINT)?;
        // Half of the uppermost label stands above the axis.
        top += if self.y_label.is_empty() {
            6
        } else {
            LABEL.line() + 2
        };
        self.draw_curves(&pen, size, top, right)?;
        area.present()
    }

    /// The legend at the right, between the rows of `range`; the width it takes of `width`.
    fn draw_legend_beside<D: DrawingBackend>(
        &self,
        pen: &Pen<'_, D>,
        (top, bottom): (usize, usize),
        width: usize,
    ) -> Drawn<usize, D> {
        let most = width * 2 / 5;
        let first = if self.note.is_empty() {
            top
        } else {
            top + LINE
        };
        let entries = self.entries((bottom.saturating_sub(first) / LINE).max(1));
        let note = NOTE.width(&self.note).ceil() as usize;
        let column = entries
            .iter()
            .map(Entry::width)
            .fold(note, usize::max)
            .min(most);
        let left = width - MARGIN - column;
        pen.text((left, top), column, &self.note, NOTE, INK)?;
        for (line, entry) in entries.iter().enumerate() {
            pen.entry((left, first + line * LINE), column, entry)?;
        }
        Ok(column + BETWEEN)
    }

    /// The legend from the row `top` on, over `room` pixels; the rows it takes.
    fn draw_legend_above<D: DrawingBackend>(
        &self,
        pen: &Pen<'_, D>,
        top: usize,
        room: usize,
    ) -> Drawn<usize, D> {
        let mut left = 0;
        let mut row = 0;
        if !self.note.is_empty() {
            let wide = (NOTE.width(&self.note).ceil() as usize).min(room);
            pen.text((MARGIN, top), room, &self.note, NOTE, INK)?;
            left = wide + BETWEEN;
        }
        let shown = if self.series.len() < 2 { 0 } else { usize::MAX };
        let wide = |entry: &Entry| entry.width().min(room);
        // As many entries as fit, the last of which counts the others.
        let places = |entries: &[Entry], left: usize| -> Vec<(usize, usize)> {
            let (mut left, mut row) = (left, 0);
            let place = |entry: &Entry| {
                if left > 0 && left + wide(entry) > room {
                    (left, row) = (0, row + 1);
                }
                let place = (left, row);
                left += wide(entry) + BETWEEN;
                place
            };
            entries.iter().map(place).collect()
        };
        let mut entries = self.entries(shown);
        let mut found = places(&entries, left);
        while found.last().is_some_and(|(_, row)| *row >= LINES) {
            let fit = found.iter().filter(|(_, row)| *row < LINES).count();
            entries = self.entries(fit.min(entries.len() - 1).max(1));
            found = places(&entries, left);
        }
        for (entry, (left, line)) in entries.iter().zip(found) {
            row = line;
            pen.entry((MARGIN + left, top + line * LINE), room, entry)?;
        }
        let any = !entries.is_empty() || !self.note.is_empty();
        Ok(if any { (row + 1) * LINE + 4 } else { 0 })
    }

    /// An entry for each series, or `most` of which the last counts the others.
    fn entries(&self, most: usize) -> Vec<Entry> {
        let shown = match self.series.len() <= most {
            true => self.series.len(),
            false => most.saturating_sub(1),
        };
        let names = self.series.iter().take(shown).enumerate();
        let mut entries: Vec<Entry> = names
            .map(|(place, series)| Entry {
                text: series.name.clone(),
                color: Some(color(place)),
                dashed: dashed(place),
            })
            .collect();
        if shown < self.series.len() && most > 0 {
            entries.push(Entry {
                text: format!("and {} more", self.series.len() - shown),
                color: None,
                dashed: false,
            });
        }
        entries
    }

    /// Axes and curves below the row `top`, with `right` pixels left at their right.
    fn draw_curves<D: DrawingBackend>(
        &self,
        pen: &Pen<'_, D>,
        size: (usize, usize),
        top: usize,
        right: usize,
    ) -> Drawn<(), D> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let bottom = 2 * LABEL.line() + 2;
        let high = size.1.saturating_sub(top + MARGIN + bottom).max(1);
        let x_range = self
            .x_range
            .or_else(|| spread(points().map(|point| point.0)));
        let y_range = self.y_range.or_else(|| {
            let bars = self.series.iter().flat_map(Series::bars).flatten();
            spread(points().copied().chain(bars).map(|point| point.1))
        });
        let (Some(x_range), Some(y_range)) = (x_range, y_range) else {
            let middle = (size.0 / 2, top + high / 2);
            return pen.centred(middle, "no finite value", LABEL, FAINT);
        };
        let y_labels = (high / 42).clamp(2, 8);
        let y = match self.y_range {
            Some(_) => Ticks::within(y_range, y_labels, false),
            None => Ticks::around(y_range, y_labels),
        };
        let label = y
            .labels()
            .iter()
            .map(|label| LABEL.width(label))
            .fold(0.0, f32::max);
        let left = label.ceil() as usize + 8;
        let wide = size.0.saturating_sub(MARGIN + left + right);
        let whole = points().all(|(x, _)| x.fract() == 0.0);
        let x = match self.x_names.is_empty() {
            true => Ticks::within(x_range, (wide / 72).clamp(2, 10), whole),
            false => {
                let room = (wide / self.x_names.len()) as f32;
                let shorten = |name: &String| LABEL.shorten(name, room - 4.0);
                Ticks::named(&self.x_names.iter().map(shorten).collect::<Vec<_>>())
            }
        };

        let units = |pixels: usize| (pixels * UNITS) as u32;
        let plain = |color: Color, width: u32| ShapeStyle {
            color: rgb(color).to_rgba(),
            filled: false,
            stroke_width: width * UNITS as u32,
        };
        let mut chart = ChartBuilder::on(pen.0)
            .margin_top(units(top))
            .margin_left(units(MARGIN))
            .margin_right(units(right))
            .margin_bottom(units(MARGIN))
            .set_label_area_size(LabelAreaPosition::Left, units(left))
            .set_label_area_size(LabelAreaPosition::Bottom, units(bottom))
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(plain(GRID, 1))
            .axis_style(plain(AXIS, 1))
            .set_all_tick_mark_size((3 * UNITS) as u32)
            .label_style(style(LABEL, FAINT))
            .axis_desc_style(style(LABEL, FAINT))
            .x_desc(LABEL.shorten(&self.x_label, wide as f32))
            .draw()?;
        // The first series is drawn last, above the others.
        for (place, series) in self.series.iter().enumerate().rev() {
            let color = rgb(color(place));
            let cut = |&(a, b): &(f64, f64)| (a.clamp(x.low, x.high), b.clamp(y.low, y.high));
            for bar in series.bars() {
                let bar = bar.iter().map(cut);
                chart.draw_series(LineSeries::new(bar, color.stroke_width(UNITS as u32)))?;
            }
            let points: Vec<(f64, f64)> = series.points.iter().map(cut).collect();
            if !self.x_names.is_empty() && points.len() > 1 {
                let dot = |at: &(f64, f64)| Circle::new(*at, (3 * UNITS) as u32, color.filled());
                chart.draw_series(points.iter().map(dot))?;
            }
            let points = thinned(&points, [x.low, x.high], wide * DENSITY);
            let line = ShapeStyle {
                color: color.to_rgba(),
                filled: false,
                stroke_width: (2 * UNITS - 1) as u32,
            };
            if series.filled && points.len() > 1 {
                let area = AreaSeries::new(points.iter().copied(), y.low, color.mix(0.14));
                chart.draw_series(area)?;
            }
            if points.len() == 1 {
                let dot = Circle::new(points[0], (3 * UNITS) as u32, color.filled());
                chart.draw_series([dot])?;
            } else if dashed(place) {
                let (dash, gap) = ((7 * UNITS) as u32, (4 * UNITS) as u32);
                chart.draw_series(DashedLineSeries::new(points, dash, gap, line))?;
            } else {
                chart.draw_series(LineSeries::new(points, line))?;
            }
        }
        Ok(())
    }
}

const NOTE: Face = Face::bold(12.0);

fn bounded((width, height): (usize, usize)) -> (usize, usize) {
    let side = |side: usize| side.clamp(SIDES.start, SIDES.end - 1);
    (side(width), side(height))
}

/// Whether series `place` has the colour of one before it.
fn dashed(place: usize) -> bool {
    place / COLORS.len() % 2 == 1
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The points of the lines of a colour in an SVG, in units.
    pub(crate) fn lines(svg: &str, [red, green, blue]: Color) -> Vec<Vec<[f64; 2]>> {
        let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
        let of_color = svg.lines().filter(|line| line.starts_with("<polyline"));
        let of_color = of_color.filter(|line| line.contains(&stroke));
        let points = of_color.map(|line| {
            let points = line
                .split("points=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            let points = points.split_whitespace().map(|point| {
                let (x, y) = point.split_once(',').unwrap();
                [x.parse().unwrap(), y.parse().unwrap()]
            });
            points.collect()
        });
        points.collect()
    }

    /// Left, top, right and bottom of where the curves of an SVG are, in units.
    pub(crate) fn plot(svg: &str) -> [f64; 4] {
        // The axes are the longest lines of their colour; the others are marks.
        let length = |line: &Vec<[f64; 2]>, axis: usize| (line[0][axis] - line[1][axis]).abs();
        let axes = lines(svg, AXIS);
        let longest = |axis: usize| {
            let by_length = |a: &&Vec<_>, b: &&Vec<_>| length(a, axis).total_cmp(&length(b, axis));
            axes.iter().max_by(by_length).unwrap()
        };
        let (across, up) = (longest(0), longest(1));
        let [low, high] = [
            across[0][0].min(across[1][0]),
            across[0][0].max(across[1][0]),
        ];
        [low, up[0][1].min(up[1][1]), high, up[0][1].max(up[1][1])]
    }

    /// Where a point of the axes `0..=x` and `0..=y` is in an SVG, in units.
    pub(crate) fn place(svg: &str, [x, y]: [f64; 2]) -> [f64; 2] {
        let [left, top, right, bottom] = plot(svg);
        [left + x * (right - left), bottom - y * (bottom - top)]
    }

    /// Whether two points are within a pixel of each other.
    pub(crate) fn near(a: [f64; 2], b: [f64; 2]) -> bool {
        (0..2).all(|axis| (a[axis] - b[axis]).abs() <= UNITS as f64)
    }

    /// The colour of an image at a place of the SVG of the same chart.
    pub(crate) fn pixel(image: &Image, [x, y]: [f64; 2]) -> Color {
        let scale = DENSITY as f64 / UNITS as f64;
        image
            .pixel((x * scale) as usize, (y * scale) as usize)
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{lines, near, pixel, place};
    use super::*;

    fn falling() -> Series {
        Series::new(
            "loss",
            (0..=10).map(|step| (f64::from(step), f64::from(10 - step))),
        )
    }

    #[test]
    fn a_falling_curve_falls_from_corner_to_corner() {
        let chart = Chart::new("Loss", "step", "nats").series(falling());
        let svg = chart.to_svg(460, 290).unwrap();
        let [line] = &lines(&svg, color(0))[..] else {
            panic!("{svg}");
        };
        assert_eq!(line.len(), 11);
        assert!(near(line[0], place(&svg, [0.0, 1.0])), "{line:?}");
        assert!(near(line[10], place(&svg, [1.0, 0.0])), "{line:?}");
        assert!(line.is_sorted_by(|a, b| a[0] < b[0] && a[1] < b[1]));
        assert!(svg.starts_with("<svg width=\"460\" height=\"290\" viewBox=\"0 0 1840 1160\""));

        let image = chart.to_image(460, 290).unwrap();
        assert_eq!((image.width, image.height), (920, 580));
        for at in &line[1..10] {
            assert_eq!(pixel(&image, *at), color(0), "{at:?}");
        }
        assert_eq!(pixel(&image, place(&svg, [0.33, 0.33])), WHITE);
        assert_eq!(image.pixel(0, 0), Some(WHITE));
    }

    #[test]
    fn words_are_written_and_escaped() {
        let chart = Chart::new("A < B & \u{e4}", "steps", "<unit>")
            .note("mean")
            .series(falling())
            .series(Series::new("\"b\"", []));
        let svg = chart.to_svg(460, 290).unwrap();
        for words in [
            "A &lt; B &amp; \u{e4}",
            "steps",
            "&lt;unit&gt;",
            "mean",
            "loss",
            "&quot;b&quot;",
        ] {
            assert!(
                svg.contains(&format!("\n{words}\n</text>")),
                "{words} in {svg}"
            );
        }
        let untitled = chart.svg((460, 290), false).unwrap();
        assert!(!untitled.contains("A &lt; B"));
        // A single curve needs no legend.
        let alone = Chart::new("x", "y", "z")
            .series(falling())
            .to_svg(460, 290)
            .unwrap();
        assert!(!alone.contains("loss"));
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let odd = [
            (0.0, 1.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 2.0),
            (2.0, -1e300),
            (3.0, 3.0),
        ];
        let series = Series::new("odd", odd);
        assert_eq!(series.points, [(0.0, 1.0), (3.0, 3.0)]);
        let none = Chart::new("t", "x", "y").series(Series::new("none", [(1.0, f64::NAN)]));
        assert!(none.series[0].is_empty());
        let svg = none.to_svg(460, 290).unwrap();
        assert!(
            svg.contains("no finite value") && !svg.contains("NaN") && !svg.contains("polyline")
        );
        assert!(
            Chart::new("", "", "")
                .to_svg(0, 0)
                .unwrap()
                .contains("no finite value")
        );
    }

    /// Words, lines and dots are inside the chart.
    fn check_inside(svg: &str) {
        let value = |text: &str, key: &str| -> Option<f64> {
            let rest = text.split(&format!(" {key}=\"")).nth(1)?;
            rest.split('"').next()?.parse().ok()
        };
        let (wide, high) = (value(svg, "width").unwrap(), value(svg, "height").unwrap());
        let (wide, high) = (UNITS as f64 * wide, UNITS as f64 * high);
        let elements = svg.lines().skip(1);
        for element in elements.filter(|element| element.starts_with('<')) {
            for (keys, most) in [
                (["x", "cx", "x1", "x2"], wide),
                (["y", "cy", "y1", "y2"], high),
            ] {
                for at in keys.into_iter().filter_map(|key| value(element, key)) {
                    assert!((0.0..=most).contains(&at), "{element}");
                }
            }
            if element.starts_with("<polyline") || element.starts_with("<polygon") {
                let points = element
                    .split("points=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap();
                for point in points.split_whitespace() {
                    let (x, y) = point.split_once(',').unwrap();
                    let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                    assert!(
                        (0.0..=wide).contains(&x) && (0.0..=high).contains(&y),
                        "{element}"
                    );
                }
            }
        }
        // Words that begin inside also end there.
        let texts = svg.split("<text ").skip(1);
        for text in texts.filter(|text| text.contains("text-anchor=\"start\"")) {
            let words = text.split('\n').nth(1).unwrap();
            let left = value(&format!(" {text}"), "x").unwrap();
            let size = value(text, "font-size").unwrap() as f32;
            let end = left + f64::from(Face::regular(size).width(words));
            assert!(end <= wide, "{words} ends at {end} of {wide}");
        }
    }

    #[test]
    fn odd_charts_stay_inside_and_finite() {
        let point = |x: f64, y: f64| Series::new("one point", [(x, y)]);
        let steps = |count: u32, of: fn(f64) -> f64| {
            Series::new(
                "steps",
                (0..count).map(|at| (f64::from(at), of(f64::from(at)))),
            )
        };
        let long = "\u{1f9e6} sehr langer N\u{e4}me \u{8863}\n".repeat(30);
        let mut charts = vec![
            vec![point(0.0, 0.0)],
            vec![point(7.0, -3.0), point(7.0, -3.0)],
            vec![point(3e38, -3e38), point(-3e38, 3e38)],
            vec![point(1.0, 1e-40), point(1.0, 2e-40)],
            vec![
                steps(100_000, f64::sin),
                Series::new(&long, [(5.0, 4.0), (2.0, 1.0)]),
            ],
            vec![steps(100, |at| 1e6 + at * 1e-9).filled(), steps(2, |at| at)],
        ];
        charts.push((0..300).map(|class| steps(class % 4, |at| at)).collect());
        charts.push(
            (0..300)
                .map(|class| Series::new(format!("{class} {long}"), [(0.0, 1.0)]))
                .collect(),
        );
        for series in charts {
            let few = series
                .iter()
                .map(|series| series.points.len())
                .sum::<usize>()
                < 2_000;
            for beside in [false, true] {
                let mut chart = Chart::new(&*long, &*long, &*long);
                chart.series.clone_from(&series);
                chart.beside = beside;
                for (width, height) in [(460, 290), (1, 1), (161, 4000)] {
                    check_inside(&chart.to_svg(width, height).unwrap());
                }
                if few {
                    let image = chart.to_image(300, 200).unwrap();
                    assert_eq!((image.width, image.height), (600, 400));
                }
                let cut = chart.clone().x_range([0.0, 1.0]).y_range([0.5, 0.2]);
                check_inside(&cut.to_svg(460, 290).unwrap());
            }
        }
    }

    #[test]
    fn many_series_are_counted_where_the_legend_ends() {
        let many = |count: usize| {
            let series = (0..count).map(|at| Series::new(format!("class {at}"), [(0.0, 0.0)]));
            series.fold(Chart::new("t", "x", "y"), Chart::series)
        };
        let above = many(300).to_svg(460, 290).unwrap();
        let beside = many(300).legend_beside().to_svg(460, 290).unwrap();
        for svg in [&above, &beside] {
            let named = svg.matches("\nclass ").count();
            assert!((5..60).contains(&named), "{named}");
            assert!(
                svg.contains(&format!("\nand {} more\n", 300 - named)),
                "{svg}"
            );
        }
        let all = many(12).legend_beside().to_svg(460, 290).unwrap();
        assert!(all.matches("\nclass ").count() == 12 && !all.contains("more"));
    }

    #[test]
    fn a_long_curve_keeps_its_peaks() {
        let points: Vec<_> = (0..50_000)
            .map(|at| {
                (
                    f64::from(at),
                    if at == 31_415 { 9.0 } else { f64::from(at % 2) },
                )
            })
            .collect();
        let kept = thinned(&points, [0.0, 49_999.0], 400);
        assert!(kept.len() <= 4 * 401 && kept.contains(&(31_415.0, 9.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((kept.first(), kept.last()), (points.first(), points.last()));
        assert_eq!(thinned(&points[..50], [0.0, 49.0], 400).len(), 50);
    }

    #[test]
    fn the_eleventh_curve_is_dashed() {
        let flat = |at: u32| Series::new("flat", [(0.0, f64::from(at)), (1.0, f64::from(at))]);
        let chart = (0..11)
            .map(flat)
            .fold(Chart::new("t", "x", "y"), Chart::series);
        let svg = chart.to_svg(460, 290).unwrap();
        let of_first = lines(&svg, color(0));
        let whole = of_first
            .iter()
            .filter(|line| line[0][0] < 200.0 && line[1][0] > 1700.0);
        assert_eq!(whole.count(), 1);
        assert!(of_first.len() > 10, "{}", of_first.len());
    }

    #[test]
    fn a_filled_curve_has_a_light_ground() {
        let chart = Chart::new("t", "x", "y")
            .x_range([0.0, 1.0])
            .y_range([0.0, 1.0])
            .series(Series::new("half", [(0.0, 0.5), (1.0, 0.5)]).filled());
        let svg = chart.to_svg(460, 290).unwrap();
        let image = chart.to_image(460, 290).unwrap();
        let [below, above] = [0.25, 0.75].map(|y| pixel(&image, place(&svg, [0.47, y])));
        assert_eq!(above, WHITE);
        assert!(
            below != WHITE && below.iter().all(|channel| *channel > 200),
            "{below:?}"
        );
    }
}
