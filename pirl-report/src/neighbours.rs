//! Retrieval to look at: images beside those whose features are nearest.

use pirl_data::{Image, Pack};
use pirl_eval::Neighbour;

use crate::canvas::{Canvas, Color, FAINT, INK};
use crate::error::{ReportError, Result};
use crate::font::Face;
use crate::sheet::{caption, framed, panel};

/// Longer side of an image on the sheet, pixels, at most.
pub(crate) const PANEL: usize = 128;
const GAP: usize = 10;
/// Pixels between a query and its neighbours.
const APART: usize = 24;
/// Pixels around the sheet.
const FRAME: usize = 12;
/// Thickness of the edge around a neighbour, pixels.
const EDGE: usize = 3;
/// The class of an image.
const CLASS: Face = Face::bold(12.0);
/// What else is known of an image, and what the colours mean.
const FACTS: Face = Face::regular(11.0);
/// A neighbour of the query's class.
pub(crate) const SAME: Color = [0x1c, 0x86, 0x44];
/// One of another class.
pub(crate) const OTHER: Color = [0xc2, 0x31, 0x3a];

/// A contact sheet: a row for each of the images `queries` of `pack`, first the image, then its
/// `neighbours` in `gallery`, each with its class, cosine and file, or number if the pack has no names; the class, and an edge around the
/// image, in green where it is the query's, in red where it is another.
///
/// # Errors
/// [`ReportError::Rows`] unless there are neighbours of each query; [`ReportError::Empty`] without any;
/// [`ReportError::Data`] for an image that is not there or cannot be decoded; [`ReportError::TooLarge`].
pub fn neighbour_sheet(
    pack: &Pack,
    queries: &[u32],
    gallery: &Pack,
    neighbours: &[Vec<Neighbour>],
) -> Result<Image> {
    if neighbours.len() != queries.len() {
        return Err(ReportError::Rows {
            picture: "a sheet of neighbours",
            what: "queries",
            expected: queries.len(),
            found: neighbours.len(),
        });
    }
    let most = neighbours.iter().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return Err(ReportError::Empty {
            picture: "a sheet of neighbours",
            expected: "at least 1 neighbour",
        });
    }
    let row_height = place_height() + GAP;
    let width = left(most) + PANEL;
    let mut sheet = Canvas::new(width, neighbours.len() * row_height - GAP)?;
    for (row, (query, found)) in queries.iter().zip(neighbours).enumerate() {
        let query = *query as usize;
        let class = class(pack, query);
        let top = row * row_height;
        show(&mut sheet, (0, top), pack, query, "query", None)?;
        for (place, neighbour) in found.iter().enumerate() {
            let own = self::class(gallery, neighbour.index);
            let hue = class
                .is_some()
                .then_some(if own == class { SAME } else { OTHER });
            let cosine = format!("{:.3}", neighbour.cosine);
            let place = (left(place + 1), top);
            show(&mut sheet, place, gallery, neighbour.index, &cosine, hue)?;
        }
    }
    let legend = "queries, and the images nearest to them by the cosine of their features; green: of \
                  the query's class, red: of another";
    let sheet = caption(&sheet.into_image(), legend, FACTS, FAINT)?;
    framed(&sheet, FRAME)
}

/// Where column `column` begins, from the left of the sheet.
pub(crate) fn left(column: usize) -> usize {
    column * (PANEL + GAP) + if column > 0 { APART - GAP } else { 0 }
}

/// Rows of an image and the words under it.
fn place_height() -> usize {
    PANEL + 4 + CLASS.line() + FACTS.line()
}

/// Draws an image and what is known of it, whose place begins at `(x, y)`.
fn show(
    sheet: &mut Canvas,
    (x, y): (usize, usize),
    pack: &Pack,
    index: usize,
    fact: &str,
    hue: Option<Color>,
) -> Result<()> {
    let (image, _) = panel(&pack.decode(index)?, PANEL)?;
    let (wide, high) = ((PANEL - image.width) / 2, (PANEL - image.height) / 2);
    let corner = ((x + wide) as i64, (y + high) as i64);
    sheet.paste(corner, &image);
    if let Some(hue) = hue {
        let edges = [x, y, x + PANEL, y + PANEL].map(|edge| edge as f64);
        sheet.outline(edges, EDGE, 0, hue)?;
    }
    let at = |row: usize| (x as i64, (y + PANEL + 4 + row) as i64);
    let name = class(pack, index).unwrap_or_default();
    sheet.text(at(0), PANEL, name, CLASS, hue.unwrap_or(INK))?;
    let facts = match pack
        .name(index)
        .and_then(|name| name.rsplit(['/', '\\']).next())
    {
        Some(name) => format!("{fact}, {name}"),
        None => format!("{fact}, number {index}"),
    };
    sheet.text(at(CLASS.line()), PANEL, &facts, FACTS, FAINT)
}

/// The name of the class of an image, empty where it has none.
fn class(pack: &Pack, index: usize) -> Option<&str> {
    let name = pack.class_names().get(pack.label(index)? as usize);
    Some(name.map_or("", String::as_str))
}

#[cfg(test)]
mod tests {
    use pirl_data::{Encoding, PackOptions, RawSample, Source, pack};

    use super::*;
    use crate::canvas::PAPER;
    use crate::sheet::caption_height;

    /// Flat images, each of its own grey, in turn of two classes, or of none.
    struct Greys {
        sides: (u32, u32),
        names: Vec<String>,
    }

    impl Source for Greys {
        fn len(&self) -> usize {
            6
        }

        fn class_names(&self) -> &[String] {
            &self.names
        }

        fn read(&self, index: usize) -> std::result::Result<RawSample<'_>, pirl_data::DataError> {
            let (width, height) = self.sides;
            Ok(RawSample {
                name: index.to_string(),
                bytes: vec![10 * index as u8 + 7; (width * height) as usize].into(),
                encoding: Encoding::Raw {
                    height,
                    width,
                    channels: 1,
                },
                label: (!self.names.is_empty()).then_some(index as u32 % 2),
                objects: None,
            })
        }

        fn describe(&self) -> String {
            "greys".to_owned()
        }
    }

    fn packed(sides: (u32, u32), names: &[&str]) -> (tempfile::TempDir, Pack) {
        let folder = tempfile::tempdir().unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let path = folder.path().join("greys");
        pack(
            &Greys { sides, names },
            &path,
            &PackOptions::default(),
            &mut |_, _| {},
        )
        .unwrap();
        let pack = Pack::open(path).unwrap();
        (folder, pack)
    }

    fn found(indices: &[usize]) -> Vec<Neighbour> {
        let neighbour = |&index| Neighbour { index, cosine: 0.9 };
        indices.iter().map(neighbour).collect()
    }

    #[test]
    fn a_row_shows_a_query_its_neighbours_and_whether_their_class_is_its_own() {
        let (_folder, pack) = packed((16, 16), &["cat", "dog"]);
        let rows = [(0, found(&[2, 1, 4])), (5, found(&[3, 0]))];
        let queries = rows.each_ref().map(|row| row.0);
        let neighbours = rows.each_ref().map(|row| row.1.clone());
        let sheet = neighbour_sheet(&pack, &queries, &pack, &neighbours).unwrap();
        let top = FRAME + caption_height(FACTS);
        let row_height = place_height() + GAP;
        assert_eq!(
            (sheet.width, sheet.height),
            (
                2 * FRAME + left(3) + PANEL,
                FRAME + top + 2 * row_height - GAP
            )
        );
        for (row, (query, neighbours)) in rows.iter().enumerate() {
            let shown = [*query as usize]
                .into_iter()
                .chain(neighbours.iter().map(|n| n.index));
            for (column, index) in shown.enumerate() {
                let (x, y) = (FRAME + left(column), top + row * row_height);
                let middle = sheet.pixel(x + PANEL / 2, y + PANEL / 2);
                assert_eq!(middle, Some([10 * index as u8 + 7; 3]), "{row}, {column}");
                let edge = match column {
                    0 => [10 * index as u8 + 7; 3],
                    _ if index % 2 == *query as usize % 2 => SAME,
                    _ => OTHER,
                };
                assert_eq!(
                    sheet.pixel(x + 1, y + PANEL / 2),
                    Some(edge),
                    "{row}, {column}"
                );
            }
        }
        let (x, y) = (FRAME + left(3) + PANEL / 2, top + row_height + PANEL / 2);
        assert_eq!(
            sheet.pixel(x, y),
            Some(PAPER),
            "no third neighbour of the second"
        );
    }

    #[test]
    fn odd_images_and_names_have_their_place() {
        let long = "Schuhe \u{1f460} \u{9774} ".repeat(40);
        for (sides, names) in [
            ((1, 1), vec![&*long, ""]),
            ((1, 900), vec![]),
            ((900, 1), vec![]),
        ] {
            let (_folder, pack) = packed(sides, &names);
            let sheet = neighbour_sheet(&pack, &[0, 1], &pack, &[found(&[1]), found(&[0])]);
            let sheet = sheet.unwrap();
            assert_eq!(sheet.width, 2 * FRAME + left(1) + PANEL);
            for y in FRAME + caption_height(FACTS)..sheet.height {
                for x in [FRAME - 1, FRAME + PANEL + 2, sheet.width - FRAME] {
                    assert_eq!(sheet.pixel(x, y), Some(PAPER), "{sides:?}: {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let (_folder, pack) = packed((2, 2), &[]);
        let refused = |queries: &[u32], neighbours: &[Vec<Neighbour>]| {
            neighbour_sheet(&pack, queries, &pack, neighbours).unwrap_err()
        };
        assert!(matches!(refused(&[0], &[]), ReportError::Rows { .. }));
        assert!(matches!(refused(&[], &[]), ReportError::Empty { .. }));
        assert!(matches!(
            refused(&[0], &[vec![]]),
            ReportError::Empty { .. }
        ));
        assert!(matches!(
            refused(&[9], &[found(&[1])]),
            ReportError::Data(_)
        ));
        assert!(matches!(
            refused(&[1], &[found(&[9])]),
            ReportError::Data(_)
        ));
    }
}
