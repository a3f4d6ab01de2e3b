//! Lines, boxes and words on an image.

use font8x8::UnicodeFonts;

use crate::{DataError, Image};

/// Red, green and blue.
pub type Color = [u8; 3];

/// What a canvas is before anything is drawn on it: white.
pub const PAPER: Color = [255; 3];
/// Words, and lines of no other meaning: nearly black.
pub const INK: Color = [40; 3];
/// Side of a letter, pixels.
pub const LETTER: usize = 8;

/// Colours that differ to most eyes, one after another.
pub fn color(index: usize) -> Color {
    const COLORS: [Color; 10] = [
        [31, 119, 180],
        [214, 96, 20],
        [44, 140, 44],
        [200, 39, 40],
        [128, 90, 180],
        [140, 86, 75],
        [210, 90, 180],
        [90, 90, 90],
        [150, 150, 20],
        [20, 160, 180],
    ];
    COLORS[index % COLORS.len()]
}

/// An image to draw on; what lies outside it is left out. Places are columns from the left and rows
/// from the top, in pixels.
#[derive(Clone, Debug)]
pub struct Canvas(Image);

impl Canvas {
    /// Blank paper of at least a pixel.
    pub fn new(width: usize, height: usize) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        Self(Image {
            width,
            height,
            pixels: PAPER.repeat(width * height),
        })
    }

    /// Draws on `image`.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when the image's pixels do not fill it.
    pub fn on(image: Image) -> Result<Self, DataError> {
        image.check()?;
        Ok(Self(image))
    }

    /// What was drawn.
    pub fn into_image(self) -> Image {
        self.0
    }

    fn dot(&mut self, x: i64, y: i64, color: Color) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
            return;
        };
        let Image { width, height, .. } = self.0;
        if x < width && y < height {
            let start = (y * width + x) * 3;
            self.0.pixels[start..start + 3].copy_from_slice(&color);
        }
    }

    /// A rectangle of `w` x `h` pixels whose upper left corner is at `(x, y)`.
    pub fn fill(&mut self, (x, y): (i64, i64), (w, h): (usize, usize), color: Color) {
        for y in y..y + h as i64 {
            for x in x..x + w as i64 {
                self.dot(x, y, color);
            }
        }
    }

    /// A straight line, `width` pixels thick.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), width: usize, color: Color) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let steps = dx.abs().max(dy.abs()).ceil().max(1.0) as usize;
        for step in 0..=steps {
            let share = step as f64 / steps as f64;
            let at = (from.0 + share * dx, from.1 + share * dy);
            let corner = (at.0.round() as i64, at.1.round() as i64);
            self.fill(corner, (width, width), color);
        }
    }

    /// The outline of a box of left, top, right and bottom edges, `width` pixels thick and inside it;
    /// of `dash` pixels every other is drawn, all of them for 0.
    pub fn outline(&mut self, bounds: [f64; 4], width: usize, dash: usize, color: Color) {
        let [x0, y0, x1, y1] = bounds.map(|x| x.round() as i64);
        let far = width as i64 - 1;
        let drawn = |at: i64| dash == 0 || (at / dash as i64) % 2 == 0;
        for x in (x0..x1).filter(|&x| drawn(x - x0)) {
            self.fill((x, y0), (1, width), color);
            self.fill((x, y1 - 1 - far), (1, width), color);
        }
        for y in (y0..y1).filter(|&y| drawn(y - y0)) {
            self.fill((x0, y), (width, 1), color);
            self.fill((x1 - 1 - far, y), (width, 1), color);
        }
    }

    /// Words whose upper left corner is at `(x, y)`; letters beyond Latin's are question marks.
    pub fn text(&mut self, (x, y): (i64, i64), text: &str, color: Color) {
        for (place, letter) in text.chars().enumerate() {
            let glyph = font8x8::BASIC_FONTS
                .get(letter)
                .or_else(|| font8x8::LATIN_FONTS.get(letter))
                .or_else(|| font8x8::BASIC_FONTS.get('?'));
            for (row, bits) in glyph.unwrap_or_default().into_iter().enumerate() {
                for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                    let x = x + (place * LETTER + column) as i64;
                    self.dot(x, y + row as i64, color);
                }
            }
        }
    }

    /// Words in `PAPER` on a ground of `color`.
    pub fn tag(&mut self, (x, y): (i64, i64), text: &str, color: Color) {
        let width = text.chars().count() * LETTER + 2;
        self.fill((x, y), (width, LETTER + 2), color);
        self.text((x + 1, y + 1), text, PAPER);
    }

    /// Copies `image` to where its upper left corner is at `(x, y)`.
    pub fn paste(&mut self, (x, y): (i64, i64), image: &Image) {
        for row in 0..image.height {
            for column in 0..image.width {
                if let Some(pixel) = image.pixel(column, row) {
                    self.dot(x + column as i64, y + row as i64, pixel);
                }
            }
        }
    }
}
