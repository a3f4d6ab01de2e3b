//! Boxes, words and images on an image, by the backend that draws charts.

use pirl_data::Image;
use plotters_backend::{BackendColor, DrawingBackend, DrawingErrorKind};

use crate::error::{ReportError, Result};
use crate::font::Face;
use crate::raster::Raster;

/// Red, green and blue.
pub(crate) type Color = [u8; 3];

/// What a picture is before anything is drawn on it.
pub(crate) const PAPER: Color = [255; 3];
/// Words, and lines of no other meaning.
pub(crate) const INK: Color = [0x23, 0x27, 0x2e];
/// Words of less weight.
pub(crate) const FAINT: Color = [0x6b, 0x73, 0x80];

/// Pixels of a picture, at most: 768 MiB of them.
const MOST_PIXELS: usize = 1 << 28;

/// Colours of curves and classes, which differ to most eyes and carry white words.
pub(crate) const COLORS: [Color; 10] = [
    [0x2f, 0x6d, 0xb5], // blue
    [0xd4, 0x5f, 0x14], // orange
    [0x2e, 0x8b, 0x57], // green
    [0xc2, 0x31, 0x4a], // red
    [0x7a, 0x56, 0xb8], // purple
    [0x8a, 0x5a, 0x44], // brown
    [0xc2, 0x4c, 0x98], // pink
    [0x5f, 0x6b, 0x7a], // slate
    [0x7f, 0x7d, 0x1c], // olive
    [0x12, 0x83, 0x93], // teal
];

/// The colour of entry `index`; after ten they come again.
pub(crate) fn color(index: usize) -> Color {
    COLORS[index % COLORS.len()]
}

/// Whether a picture of this size can be drawn.
pub(crate) fn check_size(width: usize, height: usize) -> Result<()> {
    match width.checked_mul(height) {
        Some(pixels) if pixels <= MOST_PIXELS => Ok(()),
        _ => Err(ReportError::TooLarge { width, height }),
    }
}

/// An image to draw on; what lies outside it is left out. Places are columns from the left and rows
/// from the top, in pixels.
#[derive(Clone, Debug)]
pub(crate) struct Canvas(Image);

impl Canvas {
    /// Blank paper of at least a pixel.
    ///
    /// # Errors
    /// [`ReportError::TooLarge`].
    pub(crate) fn new(width: usize, height: usize) -> Result<Self> {
        let (width, height) = (width.max(1), height.max(1));
        check_size(width, height)?;
        Ok(Self(Image {
            width,
            height,
            pixels: PAPER.repeat(width * height),
        }))
    }

    /// Draws on `image`.
    ///
    /// # Errors
    /// [`ReportError::Data`] when the image's pixels do not fill it; [`ReportError::TooLarge`].
    pub(crate) fn on(image: Image) -> Result<Self> {
        image.check()?;
        check_size(image.width, image.height)?;
        Ok(Self(image))
    }

    /// What was drawn.
    pub(crate) fn into_image(self) -> Image {
        self.0
    }

    /// A rectangle of `width` x `height` pixels whose upper left corner is at `(x, y)`.
    pub(crate) fn fill(
        &mut self,
        (x, y): (i64, i64),
        (width, height): (usize, usize),
        color: Color,
    ) -> Result<()> {
        let ends = [x, y, x + width as i64, y + height as i64];
        let [left, top, right, bottom] = self.inside(ends);
        if left < right && top < bottom {
            let style = backend(color);
            self.raster(|raster| raster.draw_rect((left, top), (right, bottom), &style, true))?;
        }
        Ok(())
    }

    /// The outline of a box of left, top, right and bottom edges, `width` pixels thick and inside it; in
    /// dashes of `dash` pixels, or whole for 0.
    pub(crate) fn outline(
        &mut self,
        bounds: [f64; 4],
        width: usize,
        dash: usize,
        color: Color,
    ) -> Result<()> {
        let far = width as f64 + 1.0;
        let (wide, high) = (self.0.width as f64 + far, self.0.height as f64 + far);
        // Edges far outside are as invisible a little outside, and take less time.
        let [x0, y0, x1, y1] = bounds;
        let [x0, x1] = [x0, x1].map(|x| x.clamp(-far, wide).round() as i64);
        let [y0, y1] = [y0, y1].map(|y| y.clamp(-far, high).round() as i64);
        let parts = |from: i64, to: i64| {
            let (step, length) = match dash {
                0 => ((to - from).max(1), (to - from).max(0)),
                dash => (2 * dash as i64, dash as i64),
            };
            let parts = (from..to).step_by(step as usize);
            parts.map(move |at| (at, (to - at).min(length) as usize))
        };
        let inner = width as i64;
        for (x, length) in parts(x0, x1) {
            self.fill((x, y0), (length, width), color)?;
            self.fill((x, y1 - inner), (length, width), color)?;
        }
        for (y, length) in parts(y0, y1) {
            self.fill((x0, y), (width, length), color)?;
            self.fill((x1 - inner, y), (width, length), color)?;
        }
        Ok(())
    }

    /// Words at the column `x`, under the row `top`, cut where they reach `most` pixels.
    pub(crate) fn text(
        &mut self,
        (x, top): (i64, i64),
        most: usize,
        text: &str,
        face: Face,
        color: Color,
    ) -> Result<()> {
        let text = face.shorten(text, most as f32);
        let origin = (x as f32, (top as f32 + face.capital()).round());
        let color = backend(color);
        self.raster(|raster| raster.words(&text, face, origin, color))
    }

    /// Words on a ground of `color`, whose upper left corner is at `(x, y)`; moved, and cut, so that they
    /// are inside the image.
    pub(crate) fn tag(
        &mut self,
        (x, y): (i64, i64),
        text: &str,
        face: Face,
        color: Color,
    ) -> Result<()> {
        const PAD: usize = 3;
        let (wide, high) = (self.0.width, self.0.height);
        let text = face.shorten(text, wide.saturating_sub(2 * PAD) as f32);
        if text.is_empty() {
            return Ok(());
        }
        let width = face.width(&text).ceil() as usize + 2 * PAD;
        let height = tag_height(face);
        let x = x.min(wide as i64 - width as i64).max(0);
        let y = y.min(high as i64 - height as i64).max(0);
        self.fill((x, y), (width, height), color)?;
        let inside = (x + PAD as i64, y + PAD as i64);
        self.text(inside, width, &text, face, PAPER)
    }

    /// Copies `image` to where its upper left corner is at `(x, y)`.
    pub(crate) fn paste(&mut self, (x, y): (i64, i64), image: &Image) {
        let ends = [x, y, x + image.width as i64, y + image.height as i64];
        let [left, top, right, bottom] = self.inside(ends).map(i64::from);
        if left >= right {
            return;
        }
        let length = (right - left) as usize * 3;
        for row in top..bottom {
            let from = ((row - y) as usize * image.width + (left - x) as usize) * 3;
            let to = (row as usize * self.0.width + left as usize) * 3;
            if let Some(pixels) = image.pixels.get(from..from + length) {
                self.0.pixels[to..to + length].copy_from_slice(pixels);
            }
        }
    }

    /// Left, top, right and bottom, cut at the edges of the image.
    fn inside(&self, [left, top, right, bottom]: [i64; 4]) -> [i32; 4] {
        let (wide, high) = (self.0.width as i64, self.0.height as i64);
        let [left, right] = [left, right].map(|x| x.clamp(0, wide) as i32);
        let [top, bottom] = [top, bottom].map(|y| y.clamp(0, high) as i32);
        [left, top, right, bottom]
    }

    fn raster<E: std::error::Error + Send + Sync>(
        &mut self,
        draw: impl FnOnce(&mut Raster<'_>) -> std::result::Result<(), DrawingErrorKind<E>>,
    ) -> Result<()> {
        let Image {
            width,
            height,
            pixels,
        } = &mut self.0;
        let mut raster = Raster::new(pixels, *width, *height)?;
        draw(&mut raster).map_err(|error| ReportError::Draw {
            what: "on an image".to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Height of a [`Canvas::tag`], pixels.
pub(crate) fn tag_height(face: Face) -> usize {
    face.capital().ceil() as usize + 6
}

fn backend([red, green, blue]: Color) -> BackendColor {
    BackendColor {
        alpha: 1.0,
        rgb: (red, green, blue),
    }
}
