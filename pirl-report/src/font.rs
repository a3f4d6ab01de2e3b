//! The font of all pictures: Noto Sans, whose bytes are part of the program, so that no machine lacks it.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};

/// How heavy letters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Regular,
    Bold,
}

/// Letters of a size, in pixels per em.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Face {
    pub(crate) size: f32,
    pub(crate) weight: Weight,
}

/// Height of a capital letter, as a share of the size.
const CAPITAL: f32 = 0.714;

impl Face {
    pub(crate) const fn regular(size: f32) -> Self {
        Self {
            size,
            weight: Weight::Regular,
        }
    }

    pub(crate) const fn bold(size: f32) -> Self {
        Self {
            size,
            weight: Weight::Bold,
        }
    }

    fn font(self) -> &'static FontRef<'static> {
        static REGULAR: LazyLock<FontRef> = LazyLock::new(|| load(notosans::REGULAR_TTF));
        static BOLD: LazyLock<FontRef> = LazyLock::new(|| load(notosans::BOLD_TTF));
        match self.weight {
            Weight::Regular => &REGULAR,
            Weight::Bold => &BOLD,
        }
    }

    /// The scale of `ab_glyph`, which counts from the highest to the lowest letter, for a size that counts
    /// an em.
    fn scale(self) -> PxScale {
        let font = self.font();
        let em = font.units_per_em().unwrap_or(1000.0);
        PxScale::from(self.size * font.height_unscaled() / em)
    }

    /// Height of a capital letter, pixels.
    pub(crate) fn capital(self) -> f32 {
        self.size * CAPITAL
    }

    /// Rows from one line of words to the next.
    pub(crate) fn line(self) -> usize {
        (self.size * 1.4).round() as usize
    }

    /// Where each letter begins, from the beginning of the words, and where the last one ends; pixels.
    fn advances(self, text: &str) -> impl Iterator<Item = (char, f32, f32)> {
        let font = self.font().as_scaled(self.scale());
        let (mut at, mut before) = (0.0, None);
        text.chars().map(move |letter| {
            let letter = if letter.is_control() { ' ' } else { letter };
            let id = font.glyph_id(letter);
            let start = at + before.map_or(0.0, |before| font.kern(before, id));
            at = start + font.h_advance(id);
            before = Some(id);
            (letter, start, at)
        })
    }

    /// Width of the words, pixels.
    pub(crate) fn width(self, text: &str) -> f32 {
        self.advances(text).last().map_or(0.0, |(_, _, end)| end)
    }

    /// The words, cut and with an ellipsis if they are wider than `most` pixels; nothing where not even
    /// that fits.
    pub(crate) fn shorten(self, text: &str, most: f32) -> String {
        const ELLIPSIS: char = '\u{2026}';
        let room = most - self.width(&ELLIPSIS.to_string());
        let mut kept = 0;
        let mut whole = true;
        for (place, (_, _, end)) in self.advances(text).enumerate() {
            if end <= room {
                kept = place + 1;
            }
            if end > most {
                whole = false;
                break;
            }
        }
        if whole {
            return text.to_owned();
        }
        if room < 0.0 {
            return String::new();
        }
        let mut text: String = text.chars().take(kept).collect();
        text.truncate(text.trim_end().len());
        text.push(ELLIPSIS);
        text
    }

    /// Calls `put` with column, row and cover, in `0.0..=1.0`, of every pixel of the words, whose first
    /// letter begins at the column and stands on the row `origin`.
    pub(crate) fn draw(self, text: &str, origin: (f32, f32), mut put: impl FnMut(i32, i32, f32)) {
        let (font, scale) = (self.font(), self.scale());
        for (letter, start, _) in self.advances(text) {
            let place = point(origin.0 + start, origin.1);
            let glyph = font.glyph_id(letter).with_scale_and_position(scale, place);
            if let Some(outline) = font.outline_glyph(glyph) {
                let corner = outline.px_bounds().min;
                outline.draw(|x, y, cover| {
                    put(
                        corner.x as i32 + x as i32,
                        corner.y as i32 + y as i32,
                        cover.min(1.0),
                    );
                });
            }
        }
    }
}

/// The font's bytes are this crate's, not the user's.
fn load(bytes: &'static [u8]) -> FontRef<'static> {
    FontRef::try_from_slice(bytes).expect("the font that is part of the program is whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACE: Face = Face::regular(13.0);

    #[test]
    fn wide_words_are_cut_to_what_fits() {
        for text in [
            "",
            "iii",
            "Ankle boot",
            "Ärmel 袖 \u{1f455}\n",
            &"w".repeat(100_000),
        ] {
            for most in [-5.0, 0.0, 3.0, 20.0, 60.0, 300.0] {
                let short = FACE.shorten(text, most);
                assert!(FACE.width(&short) <= most.max(0.0), "{short}, {most}");
                assert_eq!(
                    short == text,
                    FACE.width(text) <= most.max(0.0),
                    "{short}, {most}"
                );
            }
        }
        assert_eq!(FACE.shorten("Ankle boot", 50.0), "Ankle\u{2026}");
    }

    #[test]
    fn letters_stand_on_their_row_and_have_their_width() {
        let mut bounds = [i32::MAX, i32::MAX, i32::MIN, i32::MIN];
        Face::bold(40.0).draw("HIH", (10.0, 50.0), |x, y, cover| {
            if cover > 0.5 {
                let [left, top, right, bottom] = bounds;
                bounds = [left.min(x), top.min(y), right.max(x), bottom.max(y)];
            }
        });
        let [left, top, right, bottom] = bounds;
        assert_eq!(bottom, 49);
        let high = Face::bold(40.0).capital();
        assert!(((bottom + 1 - top) as f32 - high).abs() <= 1.0, "{top}");
        let wide = Face::bold(40.0).width("HIH");
        // A letter stands a little inside its place.
        assert!(
            left >= 10 && ((right - left) as f32) < wide && (right - left) as f32 > 0.85 * wide
        );
    }
}
