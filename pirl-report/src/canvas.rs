//! Boxes, words and images on an image, by the backend that draws charts.

use pirl_data::Image;
use plotters_backend::{BackendColor, DrawingBackend, DrawingErrorKind};

use crate::error::{ReportError, Result};
use crate::font::Face;
use crate::raster::{Raster, check_size};

/// Red, green and blue.
pub(crate) type Color = [u8; 3];

/// What a sheet is before anything is drawn on it: white images stand out from it.
pub(crate) const PAPER: Color = [0xee, 0xf0, 0xf2];
/// The ground of charts, and what must be seen on any image.
pub(crate) const WHITE: Color = [255; 3];
/// Words, and lines of no other meaning.
pub(crate) const INK: Color = [0x23, 0x27, 0x2e];
/// Words of less weight.
pub(crate) const FAINT: Color = [0x6b, 0x73, 0x80];

/// Colours of curves and classes, which differ to most eyes and carry white words.
pub(crate) const COLORS: [Color; 10] = [
    [0x2f, 0x6d, 0xb5], // blue
    [0xd4, 0x5f, 0x14], // orange
    [0x2e, 0x8b, 0x57], // green
    [0xc2, 0x31, 0x4a], // red
    [0x7a, 0x56, 0xb8], // purple
    [0x8a, 0x5a, 0x44], // brown
    [0xc2, 0x4c, 0x98], // pink
    [0x6a, 0x98, 0x2a], // lime
    [0x7f, 0x7d, 0x1c], // olive
    [0x12, 0x83, 0x93], // teal
];

/// The colour of entry `index`; after ten they come again.
pub(crate) fn color(index: usize) -> Color {
    COLORS[index % COLORS.len()]
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
        Self::of(width, height, PAPER)
    }

    /// A ground of one colour, of at least a pixel.
    ///
    /// # Errors
    /// [`ReportError::TooLarge`].
    pub(crate) fn of(width: usize, height: usize, ground: Color) -> Result<Self> {
        let (width, height) = (width.max(1), height.max(1));
        check_size(width, height)?;
        Ok(Self(Image {
            width,
            height,
            channels: 3,
            pixels: ground.repeat(width * height),
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
        self.text(inside, width, &text, face, WHITE)
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
            ..
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

#[cfg(test)]
mod tests {
    use super::*;

    const FACE: Face = Face::bold(11.0);

    fn blank() -> Canvas {
        Canvas::new(20, 10).unwrap()
    }

    /// Left, top, right and bottom of what is not paper.
    fn drawn(canvas: Canvas) -> Option<[usize; 4]> {
        let image = canvas.into_image();
        let all = (0..image.height).flat_map(|y| (0..image.width).map(move |x| (x, y)));
        let drawn = all.filter(|&(x, y)| image.pixel(x, y) != Some(PAPER));
        let boxes = drawn.map(|(x, y)| [x, y, x + 1, y + 1]);
        boxes.reduce(|a, b| {
            [
                a[0].min(b[0]),
                a[1].min(b[1]),
                a[2].max(b[2]),
                a[3].max(b[3]),
            ]
        })
    }

    #[test]
    fn rectangles_are_where_they_are_meant_and_cut_at_the_edges() {
        for ((x, y), (width, height), expected) in [
            ((3, 2), (4, 5), Some([3, 2, 7, 7])),
            ((0, 0), (20, 10), Some([0, 0, 20, 10])),
            ((-3, 8), (5, 9), Some([0, 8, 2, 10])),
            ((19, 9), (1, 1), Some([19, 9, 20, 10])),
            ((20, 0), (5, 5), None),
            ((5, -9), (5, 9), None),
            ((5, 5), (0, 3), None),
        ] {
            let mut canvas = blank();
            canvas.fill((x, y), (width, height), INK).unwrap();
            assert_eq!(drawn(canvas), expected, "{x}, {y}");
        }
    }

    #[test]
    fn outlines_are_inside_their_box() {
        let mut canvas = blank();
        canvas.outline([2.0, 1.0, 12.0, 9.0], 2, 0, INK).unwrap();
        let image = canvas.clone().into_image();
        assert_eq!(drawn(canvas), Some([2, 1, 12, 9]));
        let inked = image.pixels.chunks(3).filter(|pixel| *pixel == INK).count();
        assert_eq!(inked, 10 * 8 - 6 * 4);
        let mut dashed = blank();
        dashed.outline([0.0, 0.0, 20.0, 10.0], 1, 4, INK).unwrap();
        let image = dashed.into_image();
        let row: Vec<bool> = (0..20).map(|x| image.pixel(x, 0) == Some(INK)).collect();
        let expected: Vec<bool> = (0..20)
            .map(|x| x / 4 % 2 == 0 || x == 0 || x == 19)
            .collect();
        assert_eq!(row, expected);
        for bounds in [
            [1e300, f64::MIN, -1e300, f64::MAX],
            [f64::NAN; 4],
            [5.0; 4],
            [30.0, 3.0, 40.0, 5.0],
        ] {
            let mut canvas = blank();
            canvas.outline(bounds, 2, 0, INK).unwrap();
        }
    }

    #[test]
    fn tags_are_moved_inside() {
        for (x, y) in [(-50, -50), (0, 0), (15, 8), (900, 900)] {
            let mut canvas = Canvas::new(40, 30).unwrap();
            canvas.tag((x, y), "1", FACE, INK).unwrap();
            let [left, top, right, bottom] = drawn(canvas).unwrap();
            assert_eq!(bottom - top, tag_height(FACE), "{x}, {y}");
            assert!(right - left > 8 && right <= 40 && bottom <= 30, "{x}, {y}");
        }
        for (width, height) in [(1, 1), (6, 2), (7, 3)] {
            let mut canvas = Canvas::new(width, height).unwrap();
            canvas.tag((0, 0), "Ankle boot", FACE, INK).unwrap();
        }
    }

    #[test]
    fn words_are_dark_and_cut_at_their_width() {
        let mut canvas = Canvas::new(200, 30).unwrap();
        canvas
            .text((10, 5), 60, "Ankle boots of all sizes", FACE, INK)
            .unwrap();
        let image = canvas.clone().into_image();
        let [left, top, right, bottom] = drawn(canvas).unwrap();
        assert!(
            left >= 10 && right <= 71 && top >= 4 && bottom <= 17,
            "{left} {top} {right} {bottom}"
        );
        assert!(image.pixels.chunks(3).any(|pixel| pixel[0] < 0x60));
    }

    #[test]
    fn images_are_pasted_and_cut_at_the_edges() {
        let image = Image::new(4, 3, (0..36).collect()).unwrap();
        for (x, y, expected) in [
            (0, 0, Some([0, 0, 4, 3])),
            (18, 8, Some([18, 8, 20, 10])),
            (-2, -1, Some([0, 0, 2, 2])),
            (-9, 0, None),
            (0, 99, None),
        ] {
            let mut canvas = blank();
            canvas.paste((x, y), &image);
            if let (Some([left, top, ..]), canvas) = (expected, &canvas.0) {
                let from = image.pixel((left as i64 - x) as usize, (top as i64 - y) as usize);
                assert_eq!(canvas.pixel(left, top), from, "{x}, {y}");
            }
            assert_eq!(drawn(canvas), expected, "{x}, {y}");
        }
    }
}
