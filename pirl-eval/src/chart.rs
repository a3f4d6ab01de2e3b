//! Curves between two axes.

use pirl_data::Image;
use pirl_data::draw::{Canvas, Color, INK, LETTER};

/// Side of the plot, pixels.
pub(crate) const PLOT: usize = 480;
pub(crate) const MARGIN: usize = 48;
/// Distance between the lines of the legend, pixels.
const LINE: usize = 14;
const GRID: Color = [220; 3];

/// Axes from 0, curves between them, and a legend at the right.
pub(crate) struct Chart {
    canvas: Canvas,
    most: (f64, f64),
    legend: usize,
}

impl Chart {
    /// Axes of these names up to `most`, with room for a legend of `lines` of `letters`.
    pub(crate) fn new(
        (across, up): (&str, &str),
        most: (f64, f64),
        (lines, letters): (usize, usize),
    ) -> Self {
        let legend = (letters + 4) * LETTER;
        let height = PLOT.max(LINE * lines) + 2 * MARGIN;
        let canvas = Canvas::new(MARGIN + PLOT + legend + MARGIN / 2, height);
        let mut chart = Self {
            canvas,
            most,
            legend: 0,
        };
        let (right, high) = most;
        for tenth in 0..=10u32 {
            let (x, y) = (
                right * f64::from(tenth) / 10.0,
                high * f64::from(tenth) / 10.0,
            );
            let lines = [[(x, 0.0), (x, high)], [(0.0, y), (right, y)]];
            for [from, to] in lines.map(|ends| ends.map(|end| chart.place(end))) {
                chart.canvas.line(from, to, 1, GRID);
            }
            if tenth % 2 == 0 {
                let bottom = (MARGIN + PLOT + 6) as i64;
                let (number, left) = (number(x), chart.place((x, 0.0)).0 as i64);
                let half = (number.len() * LETTER / 2) as i64;
                chart.canvas.text((left - half, bottom), &number, INK);
                let (number, top) = (self::number(y), chart.place((0.0, y)).1 as i64);
                let width = ((number.len() + 1) * LETTER) as i64;
                let left = MARGIN as i64 + 2 - width;
                chart.canvas.text((left, top - 4), &number, INK);
            }
        }
        let middle = (MARGIN + PLOT / 2) as i64 - (across.chars().count() * LETTER / 2) as i64;
        let bottom = (MARGIN + PLOT + 22) as i64;
        chart.canvas.text((middle, bottom), across, INK);
        chart.canvas.text((8, MARGIN as i64 - 24), up, INK);
        chart
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let (right, high) = self.most;
        (
            MARGIN as f64 + x / right * PLOT as f64,
            (MARGIN + PLOT) as f64 - y / high * PLOT as f64,
        )
    }

    /// The legend's next line, behind a square of its colour if it has one.
    pub(crate) fn legend(&mut self, text: &str, hue: Option<Color>) {
        let column = (MARGIN + PLOT + 12) as i64;
        let row = (MARGIN + LINE * self.legend) as i64;
        if let Some(hue) = hue {
            self.canvas.fill((column, row), (LETTER, LETTER), hue);
        }
        self.canvas.text((column + 14, row), text, INK);
        self.legend += 1;
    }

    /// A line through points, in the units of the axes.
    pub(crate) fn curve(&mut self, points: impl IntoIterator<Item = (f64, f64)>, hue: Color) {
        let mut before = None;
        for point in points {
            let here = self.place(point);
            self.canvas.line(before.unwrap_or(here), here, 2, hue);
            before = Some(here);
        }
    }

    pub(crate) fn into_image(self) -> Image {
        self.canvas.into_image()
    }
}

/// Two decimals at most.
fn number(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
