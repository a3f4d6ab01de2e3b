//! Words and lines of a legend, drawn in pixels of a chart.
//!
//! plotters counts in whole units, of which a pixel has four.

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::element::{Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color as _, FontDesc, FontFamily, FontStyle, IntoTextStyle, RGBColor, TextStyle,
};
use plotters_backend::DrawingBackend;

use crate::canvas::{Color, FAINT, INK};
use crate::font::{Face, Weight};
use crate::raster::EM;

/// Units of a pixel.
pub(crate) const UNITS: usize = 4;
/// The letters of labels and legends.
pub(crate) const LABEL: Face = Face::regular(12.0);
/// Width of the stroke that shows a series' colour in the legend, and its distance to the name, pixels.
const STROKE: usize = 18;

/// What drawing with the backend `D` returns.
pub(crate) type Drawn<T, D> =
    std::result::Result<T, DrawingAreaErrorKind<<D as DrawingBackend>::ErrorType>>;

/// A line of a legend.
pub(crate) struct Entry {
    pub(crate) text: String,
    pub(crate) color: Option<Color>,
    pub(crate) dashed: bool,
}

impl Entry {
    /// Pixels of its line.
    pub(crate) fn width(&self) -> usize {
        let stroke = if self.color.is_some() { STROKE + 6 } else { 0 };
        LABEL.width(&self.text).ceil() as usize + stroke
    }
}

/// Draws in pixels of the chart.
pub(crate) struct Pen<'a, D: DrawingBackend>(pub(crate) &'a DrawingArea<D, Shift>);

impl<D: DrawingBackend> Pen<'_, D> {
    /// Words whose upper left corner is at `(x, y)`, cut to `most` pixels.
    pub(crate) fn text(
        &self,
        (x, y): (usize, usize),
        most: usize,
        text: &str,
        face: Face,
        color: Color,
    ) -> Drawn<(), D> {
        let text = face.shorten(text, most as f32);
        if text.is_empty() {
            return Ok(());
        }
        let style = style(face, color).pos(Pos::new(HPos::Left, VPos::Top));
        self.0.draw(&Text::new(text, units((x, y)), style))
    }

    /// Words around `middle`.
    pub(crate) fn centred(
        &self,
        middle: (usize, usize),
        text: &str,
        face: Face,
        color: Color,
    ) -> Drawn<(), D> {
        let style = style(face, color).pos(Pos::new(HPos::Center, VPos::Center));
        self.0.draw(&Text::new(text, units(middle), style))
    }

    /// A line of a legend, over `most` pixels.
    pub(crate) fn entry(&self, (x, y): (usize, usize), most: usize, entry: &Entry) -> Drawn<(), D> {
        let Some(color) = entry.color else {
            return self.text((x, y), most, &entry.text, LABEL, FAINT);
        };
        let middle = y + (LABEL.capital() / 2.0) as usize;
        let parts = if entry.dashed { 2 } else { 1 };
        let length = STROKE / parts - (parts - 1) * 2;
        for part in 0..parts {
            let left = x + part * (STROKE - length);
            let from = units((left, middle - 1));
            let to = units((left + length, middle + 2));
            self.0
                .draw(&Rectangle::new([from, to], rgb(color).filled()))?;
        }
        let room = most.saturating_sub(STROKE + 6);
        self.text((x + STROKE + 6, y), room, &entry.text, LABEL, INK)
    }
}

pub(crate) fn units((x, y): (usize, usize)) -> (i32, i32) {
    ((x * UNITS) as i32, (y * UNITS) as i32)
}

pub(crate) fn rgb([red, green, blue]: Color) -> RGBColor {
    RGBColor(red, green, blue)
}

/// Words of a size in pixels, drawn in units.
pub(crate) fn style(face: Face, color: Color) -> TextStyle<'static> {
    let weight = match face.weight {
        Weight::Regular => FontStyle::Normal,
        Weight::Bold => FontStyle::Bold,
    };
    let size = f64::from(face.size) * UNITS as f64 * EM;
    let font = FontDesc::new(FontFamily::SansSerif, size, weight);
    font.color(&rgb(color)).into_text_style(&(0, 0))
}
