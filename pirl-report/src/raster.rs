//! Plotters' bitmap backend, with two things done better.
//!
//! Words: plotters places letters on whole pixels and leaves out the room at their left. Thick lines:
//! plotters makes one polygon of the whole line, whose corners grow spikes where a curve turns sharply.

use plotters::backend::BitMapBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    FontStyle,
};

use crate::error::{ReportError, Result};
use crate::font::{Face, Weight};

/// Pixels of a picture, at most: 768 MiB of them.
const MOST_PIXELS: usize = 1 << 28;

/// Whether a picture of this size can be drawn.
pub(crate) fn check_size(width: usize, height: usize) -> Result<()> {
    match width.checked_mul(height) {
        Some(pixels) if pixels <= MOST_PIXELS => Ok(()),
        _ => Err(ReportError::TooLarge { width, height }),
    }
}

/// Size of a font as plotters counts it, of an em.
pub(crate) const EM: f64 = 1.24;

/// The error of drawing on pixels.
type Failure<'a> = DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>;

/// Draws on the pixels of an image; what lies outside is left out.
pub(crate) struct Raster<'a>(BitMapBackend<'a>);

impl<'a> Raster<'a> {
    /// `pixels` are those of an image of `width` x `height`, as an [`Image`](pirl_data::Image) has them.
    pub(crate) fn new(pixels: &'a mut [u8], width: usize, height: usize) -> Result<Self> {
        check_size(width, height)?;
        let backend = BitMapBackend::with_buffer_and_format(pixels, (width as u32, height as u32));
        let backend = backend.map_err(|error| crate::ReportError::Draw {
            what: format!("on {width} x {height} pixels"),
            reason: error.to_string(),
        })?;
        Ok(Self(backend))
    }

    /// Draws words that begin at the column and stand on the row `origin`.
    pub(crate) fn words(
        &mut self,
        text: &str,
        face: Face,
        origin: (f32, f32),
        color: BackendColor,
    ) -> std::result::Result<(), Failure<'a>> {
        let mut drawn = Ok(());
        face.draw(text, origin, |x, y, cover| {
            if drawn.is_ok() {
                drawn = self.draw_pixel((x, y), color.mix(cover.into()));
            }
        });
        drawn
    }
}

impl<'a> DrawingBackend for Raster<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> std::result::Result<(), Failure<'a>> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> std::result::Result<(), Failure<'a>> {
        self.0.present()
    }

    fn draw_pixel(
        &mut self,
        at: BackendCoord,
        color: BackendColor,
    ) -> std::result::Result<(), Failure<'a>> {
        self.0.draw_pixel(at, color)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
        fill: bool,
    ) -> std::result::Result<(), Failure<'a>> {
        self.0.draw_rect(from, to, style, fill)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> std::result::Result<(), Failure<'a>> {
        let round = style.stroke_width() > 2;
        let mut before = None;
        for at in path {
            if let Some(before) = before {
                self.0.draw_line(before, at, style)?;
            }
            if round {
                self.0
                    .draw_circle(at, style.stroke_width() / 2, &style.color(), true)?;
            }
            before = Some(at);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> std::result::Result<(), Failure<'a>> {
        let face = face(style);
        let left = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -0.5 * face.width(text),
            HPos::Right => -face.width(text),
        };
        let down = match style.anchor().v_pos {
            VPos::Top => face.capital(),
            VPos::Center => 0.5 * face.capital(),
            VPos::Bottom => 0.0,
        };
        let origin = (x as f32 + left, y as f32 + down);
        self.words(text, face, origin, style.color())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> std::result::Result<(u32, u32), Failure<'a>> {
        let face = face(style);
        Ok((face.width(text).ceil() as u32, face.capital().ceil() as u32))
    }
}

fn face(style: &impl BackendTextStyle) -> Face {
    Face {
        size: (style.size() / EM) as f32,
        weight: match style.style() {
            FontStyle::Bold => Weight::Bold,
            _ => Weight::Regular,
        },
    }
}
