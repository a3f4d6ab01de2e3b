//! The map of a set: a page on which every image is a point to be looked at.

use std::io::Cursor;

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use pirl_data::{Image, Pack};
use serde_json::json;

use crate::canvas::{COLORS, Canvas, FAINT, color};
use crate::error::{ReportError, Result};
use crate::page::{colors, dark, hex};
use crate::sheet::resize_to;

/// Sides of thumbnails in pixels, with the most images that get such: a page stays below 8 MB.
const THUMBNAILS: [(usize, usize); 4] = [(2_500, 48), (5_000, 32), (10_000, 24), (25_000, 16)];
const QUALITY: u8 = 70;
/// Side of the picture, its frame, and a point on it, pixels.
const PICTURE: usize = 1200;
const FRAME: usize = 40;
const POINT: usize = 4;

/// Points of a plane, one for each image, under the name of what placed them.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Such as "t-SNE".
    pub name: &'a str,
    /// Finite, in the order of the images.
    pub points: &'a [[f32; 2]],
}

/// A map of the images of a pack.
#[derive(Clone, Debug)]
pub struct MapReport<'a> {
    /// Of the page.
    pub title: &'a str,
    /// What stands above the map.
    pub facts: Vec<(String, String)>,
    /// The images.
    pub pack: &'a Pack,
    /// Ways to place them; the first is shown first.
    pub layouts: &'a [Layout<'a>],
}

#[derive(Template)]
#[template(path = "map.html")]
struct Page<'a> {
    title: &'a str,
    facts: &'a [(String, String)],
    settings: &'a str,
    colors: Vec<(String, String)>,
    layouts: Vec<&'a str>,
    images: usize,
    data: String,
}

impl MapReport<'_> {
    /// The page: points coloured by class, with the image at the pointer, to be moved, enlarged, searched and
    /// chosen from; light or dark as its reader's screen; nothing else is loaded. Up to 25,000 images have
    /// thumbnails in it. Images that cannot be decoded have none. Images are called as in the pack, if it has
    /// names, and found by them.
    ///
    /// # Errors
    /// [`ReportError::Empty`] without a layout or an image; [`ReportError::Rows`] unless there is a point for
    /// each image; [`ReportError::Page`].
    pub fn to_html(&self) -> Result<String> {
        self.check()?;
        let images = self.pack.len();
        let layouts = self.layouts.iter().map(|layout| {
            let numbers = layout.points.iter().flatten();
            json!({ "name": layout.name, "points": base64(numbers.flat_map(|x| x.to_le_bytes())) })
        });
        let labels =
            (0..images).map(|image| self.pack.label(image).map_or(-1, |label| label as i32));
        let names = (0..images).map(|image| self.pack.name(image).unwrap_or_default());
        let data = json!({
            "images": images,
            "classes": self.pack.class_names(),
            "names": self.pack.has_names().then(|| names.collect::<Vec<_>>()),
            "labels": base64(labels.flat_map(i32::to_le_bytes)),
            "layouts": layouts.collect::<Vec<_>>(),
            "colors": (0..COLORS.len()).map(|at| hex(color(at))).collect::<Vec<_>>(),
            "dark": (0..COLORS.len()).map(|at| hex(dark(at))).collect::<Vec<_>>(),
            "thumbnails": self.thumbnails()?,
        });
        let page = Page {
            title: self.title,
            facts: &self.facts,
            settings: "",
            colors: colors(),
            layouts: self.layouts.iter().map(|layout| layout.name).collect(),
            images,
            // Inside a script element nothing may look like its end.
            data: data.to_string().replace('<', "\\u003c"),
        };
        Ok(page.render()?)
    }

    /// A picture of the first layout.
    ///
    /// # Errors
    /// As [`MapReport::to_html`].
    pub fn picture(&self) -> Result<Image> {
        self.check()?;
        let points = self.layouts.first().map_or(&[][..], |layout| layout.points);
        let mut canvas = Canvas::new(PICTURE, PICTURE)?;
        let range = |axis: usize| {
            let along = points.iter().map(|point| point[axis]);
            let ends = (f32::INFINITY, f32::NEG_INFINITY);
            along.fold(ends, |(low, high), x| (low.min(x), high.max(x)))
        };
        let ranges = [range(0), range(1)];
        let widest = ranges
            .iter()
            .map(|(low, high)| high - low)
            .fold(f32::MIN_POSITIVE, f32::max);
        let inner = (PICTURE - 2 * FRAME) as f32;
        for (image, point) in points.iter().enumerate() {
            let place = |axis: usize| {
                let (low, high) = ranges[axis];
                let middle = 0.5 * (low + high);
                (PICTURE as f32 / 2.0 + (point[axis] - middle) / widest * inner) as i64
            };
            let ink = self
                .pack
                .label(image)
                .map_or(FAINT, |label| color(label as usize));
            // Upwards on the page is more.
            canvas.fill((place(0), PICTURE as i64 - place(1)), (POINT, POINT), ink)?;
        }
        Ok(canvas.into_image())
    }

    fn check(&self) -> Result<()> {
        let images = self.pack.len();
        if self.layouts.is_empty() || images == 0 {
            return Err(ReportError::Empty {
                picture: "a map",
                expected: "an image and a layout",
            });
        }
        let mut wrong = self
            .layouts
            .iter()
            .filter(|layout| layout.points.len() != images);
        match wrong.next() {
            None => Ok(()),
            Some(layout) => Err(ReportError::Rows {
                picture: "a map",
                what: "images",
                expected: images,
                found: layout.points.len(),
            }),
        }
    }

    /// Small copies of the images side by side in one JPEG file; null for more images than get any.
    fn thumbnails(&self) -> Result<serde_json::Value> {
        let images = self.pack.len();
        let Some((_, side)) = THUMBNAILS.iter().find(|(most, _)| images <= *most) else {
            return Ok(serde_json::Value::Null);
        };
        let columns = (images as f64).sqrt().ceil() as usize;
        let mut sheet = Canvas::new(columns * side, images.div_ceil(columns) * side)?;
        for number in 0..images {
            let Ok(image) = self.pack.decode(number) else {
                continue;
            };
            let scale = *side as f64 / image.width.max(image.height) as f64;
            let shown = |pixels: usize| ((pixels as f64 * scale).round() as usize).clamp(1, *side);
            let small = resize_to(&image, shown(image.width), shown(image.height))?;
            let corner = |at: usize, size: usize| (at * side + (side - size) / 2) as i64;
            let (column, row) = (number % columns, number / columns);
            sheet.paste(
                (corner(column, small.width), corner(row, small.height)),
                &small,
            );
        }
        let sheet = sheet.into_image();
        let mut file = Cursor::new(Vec::new());
        let (width, height) = (sheet.width as u32, sheet.height as u32);
        JpegEncoder::new_with_quality(&mut file, QUALITY)
            .write_image(&sheet.pixels, width, height, ExtendedColorType::Rgb8)
            .map_err(|error| ReportError::Draw {
                what: "the thumbnails of a map".to_owned(),
                reason: error.to_string(),
            })?;
        let sheet = BASE64_STANDARD.encode(file.into_inner());
        Ok(json!({ "side": side, "columns": columns, "jpeg": sheet }))
    }
}

fn base64(bytes: impl Iterator<Item = u8>) -> String {
    BASE64_STANDARD.encode(bytes.collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pirl_data::{ImageFolder, PackOptions, pack};

    fn packed(images: u32) -> (tempfile::TempDir, Pack) {
        let folder = tempfile::tempdir().unwrap();
        for image in 0..images {
            let class = folder
                .path()
                .join("images")
                .join(["<b>", "rings"][image as usize % 2]);
            std::fs::create_dir_all(&class).unwrap();
            let shade = image::RgbImage::from_pixel(40, 20, image::Rgb([40 * image as u8, 9, 200]));
            shade.save(class.join(format!("{image:03}.png"))).unwrap();
        }
        let out = folder.path().join("pack");
        let source = ImageFolder::open(folder.path().join("images")).unwrap();
        pack(&source, &out, &PackOptions::default(), &mut |_, _| {}).unwrap();
        let pack = Pack::open(&out).unwrap();
        (folder, pack)
    }

    #[test]
    fn a_page_holds_every_point_and_picture_and_loads_nothing() {
        let (_folder, pack) = packed(5);
        let points: Vec<[f32; 2]> = (0..5).map(|at| [at as f32, -(at as f32)]).collect();
        let layouts = [Layout {
            name: "t-SNE",
            points: &points,
        }];
        let report = MapReport {
            title: "<Pets>",
            facts: vec![("images".to_owned(), "5".to_owned())],
            pack: &pack,
            layouts: &layouts,
        };
        let page = report.to_html().unwrap();
        let data = page.split("type=\"application/json\">").nth(1).unwrap();
        let data: serde_json::Value =
            serde_json::from_str(data.split("</script>").next().unwrap()).unwrap();
        let bytes =
            |text: &serde_json::Value| BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
        assert_eq!(bytes(&data["layouts"][0]["points"]).len(), 5 * 8);
        assert_eq!(bytes(&data["labels"])[..8], [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data["classes"][0], "<b>");
        assert_eq!(data["names"][1], "<b>/002.png");
        let sheet = image::load_from_memory(&bytes(&data["thumbnails"]["jpeg"])).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (3 * 48, 2 * 48));
        assert!(page.contains("<title>&#60;Pets&#62;</title>"));
        for part in ["<b>", "<link", "@import", " src=\"", "http:", "https:"] {
            assert!(!page.contains(part), "{part}");
        }
        let picture = report.picture().unwrap();
        let pixels = picture.pixels.chunks_exact(3);
        let inked = pixels.filter(|pixel| *pixel != &picture.pixels[..3]);
        assert_eq!(inked.count(), 5 * POINT * POINT);
    }

    #[test]
    fn points_that_are_missing_are_an_error() {
        let (_folder, pack) = packed(3);
        let report = |layouts| MapReport {
            title: "",
            facts: Vec::new(),
            pack: &pack,
            layouts,
        };
        assert!(report(&[]).to_html().is_err());
        let layouts = [Layout {
            name: "a",
            points: &[[0.0, 0.0]],
        }];
        let error = report(&layouts).picture().unwrap_err().to_string();
        assert!(error.contains("3 images"), "{error}");
    }
}
