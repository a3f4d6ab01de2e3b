//! A contact sheet: images, where their views come from, and the views, to look at.

use pirl_core::random::stream;
use pirl_data::transform::{Crop, Trace};
use pirl_data::{Image, ImageView, Pack, Pretext, Scratch, sample_rng};

use crate::canvas::{Canvas, Color, INK, color, tag_height};
use crate::error::{ReportError, Result};
use crate::font::Face;
use crate::sheet::{caption, contact_sheet, enlarge, framed, panel};

/// What the stream that draws the images is for, among those of a seed.
const PREVIEW: u64 = 4;

/// Longer side of a panel, pixels, at most: smaller pictures are enlarged by the whole factor that
/// fits, larger ones are shrunk.
const PANEL: usize = 256;
/// Pixels between panels.
const GAP: usize = 16;
/// Pixels between rows.
const ROW_GAP: usize = 24;
/// Pixels around the sheet.
const FRAME: usize = 12;
/// Pixels between patches.
const PATCH_GAP: usize = 3;
/// The line above a row.
const ROW: Face = Face::bold(14.0);
/// The line above a panel.
const TITLE: Face = Face::bold(12.0);
/// The number of a patch.
const NUMBER: Face = Face::bold(11.0);
/// The colours of I and of I^t.
const VIEW: usize = 0;
const COPY: usize = 1;

/// Draws `count` images of `pack`, or all where there are fewer, a row for each, as the first epoch
/// of training with `seed` sees them:
///
/// - the image, with outlines where its two crops were taken;
/// - the view I, as the network gets it;
/// - of a jigsaw: the resized crop with outlines where its patches were cut, the patches in their
///   places, and the patches in the order the network gets them, under the numbers of their places;
/// - of a rotation: the view before it was turned, and turned as the network gets it.
///
/// Of a [`Pretext`] made elsewhere than by [`build_pretext`](pirl_data::build_pretext) only the views
/// are known, and shown in order.
///
/// # Errors
/// [`ReportError::Empty`] when `count` is 0; [`ReportError::TooLarge`]; [`ReportError::Data`] for what
/// decoding and the transforms report.
pub fn preview_sheet(
    pack: &Pack,
    view: &ImageView,
    pretext: Option<&dyn Pretext>,
    count: usize,
    seed: u64,
) -> Result<Image> {
    if count == 0 {
        return Err(ReportError::Empty {
            picture: "a preview",
            expected: "at least 1 image",
        });
    }
    let pretext = pretext.filter(|pretext| pretext.views() > 0);
    let count = count.min(pack.len());
    let shown = rand::seq::index::sample(&mut stream(seed, PREVIEW, 0, 0), pack.len(), count);
    let mut rows = Vec::with_capacity(count);
    for index in shown {
        let panels = panels(pack, index, view, pretext, seed)?;
        let row = contact_sheet(&panels, panels.len(), GAP)?;
        rows.push(caption(&row, &about(pack, index)?, ROW, INK)?);
    }
    framed(&contact_sheet(&rows, 1, ROW_GAP)?, FRAME)
}

/// What is known of a sample.
fn about(pack: &Pack, index: usize) -> Result<String> {
    let (width, height) = pack.image_size(index)?;
    let mut about = format!("sample {index}, {width} \u{d7} {height} pixels");
    if let Some(label) = pack.label(index) {
        let name = pack.class_names().get(label as usize);
        about += &format!(", class {label} {}", name.map_or("", String::as_str));
    }
    if let Some(objects) = pack.objects(index) {
        about += &format!(", {} objects", objects.len());
    }
    Ok(about)
}

/// The pictures of one sample.
fn panels(
    pack: &Pack,
    index: usize,
    view: &ImageView,
    pretext: Option<&dyn Pretext>,
    seed: u64,
) -> Result<Vec<Image>> {
    let image = pack.decode(index)?;
    let mut rng = sample_rng(seed, 0, index as u64);
    let mut scratch = Scratch::default();
    let side = view.size();
    let channels = view.channels();
    let mut seen = vec![0; channels * side * side];
    view.apply(&image, &mut rng, &mut scratch, &mut seen)?;

    let (shown, scale) = panel(&image, PANEL)?;
    let mut original = Canvas::on(shown)?;
    let mut panels = Vec::new();
    if let Some(crop) = scratch.trace().crop {
        outline(&mut original, crop, scale, color(VIEW))?;
        let title = format!("I, of {} \u{d7} {}", crop.width, crop.height);
        let (seen, _) = panel(&Image::from_planes(side, side, &seen)?, PANEL)?;
        panels.push(caption(&seen, &title, TITLE, color(VIEW))?);
    }
    if let Some(pretext) = pretext {
        let mut scratch = Scratch::default();
        let side = pretext.view_size();
        let mut bytes = vec![0; pretext.views() * channels * side * side];
        let label = pretext.apply(&image, &mut rng, &mut scratch, &mut bytes)?;
        let views = bytes.chunks_exact(channels * side * side);
        let shown = |view| Ok(Image::from_planes(side, side, view)?.to_rgb());
        let views: Vec<Image> = views.map(shown).collect::<Result<_>>()?;
        let trace = scratch.trace();
        if let Some(crop) = trace.crop {
            outline(&mut original, crop, scale, color(COPY))?;
            panels.push(source(scratch.crop(), trace, crop)?);
        }
        let mut title = "I^t".to_owned();
        if pretext.labels() > 0 {
            title += &format!(", label {label}");
        }
        let shown = if trace.patches.len() == views.len() {
            let patches = patches(&views, trace)?;
            let mut in_place: Vec<_> = trace.patches.iter().zip(&patches).collect();
            in_place.sort_by_key(|(patch, _)| patch.cell);
            let in_place: Vec<Image> = in_place.into_iter().map(|(_, p)| p.clone()).collect();
            panels.push(mosaic(&in_place, "patches in place", INK)?);
            patches
        } else {
            if views.len() == 1 {
                title += &format!(", turned {}", degrees(trace.turned_after));
            }
            let shown = views.iter().map(|view| Ok(panel(view, PANEL)?.0));
            shown.collect::<Result<_>>()?
        };
        panels.push(mosaic(&shown, &title, color(COPY))?);
    }
    panels.insert(0, caption(&original.into_image(), "image", TITLE, INK)?);
    Ok(panels)
}

/// What the views of the transformed copy were made of: a jigsaw's crop, or a view not yet turned.
fn source(resized: &Image, trace: &Trace, crop: Crop) -> Result<Image> {
    let (shown, scale) = panel(resized, PANEL)?;
    let mut canvas = Canvas::on(shown)?;
    let what = match trace.patches.is_empty() {
        true => "not turned",
        false => "crop",
    };
    let mut title = format!("{what}, of {} \u{d7} {}", crop.width, crop.height);
    if trace.turned_before > 0 {
        title += &format!(", turned {}", degrees(trace.turned_before));
    }
    for patch in &trace.patches {
        outline(&mut canvas, patch.place, scale, color(patch.cell))?;
    }
    for patch in &trace.patches {
        let corner = [patch.place.left, patch.place.top].map(|at| (at as f64 * scale) as i64);
        let number = (patch.cell + 1).to_string();
        canvas.tag((corner[0], corner[1]), &number, NUMBER, color(patch.cell))?;
    }
    caption(&canvas.into_image(), &title, TITLE, color(COPY))
}

/// Each patch under the number of its place in the crop, from 1.
fn patches(views: &[Image], trace: &Trace) -> Result<Vec<Image>> {
    let grid = views.len().isqrt().max(1);
    let numbered = |(view, cell): (&Image, usize)| {
        let patch = enlarge(view, PANEL / (grid * view.width.max(1)))?;
        let line = tag_height(NUMBER);
        let mut canvas = Canvas::new(patch.width, patch.height + line)?;
        canvas.paste((0, line as i64), &patch);
        canvas.fill((0, 0), (patch.width, line), color(cell))?;
        canvas.tag((0, 0), &(cell + 1).to_string(), NUMBER, color(cell))?;
        Ok(canvas.into_image())
    };
    let cells = trace.patches.iter().map(|patch| patch.cell);
    views.iter().zip(cells).map(numbered).collect()
}

fn mosaic(views: &[Image], title: &str, color: Color) -> Result<Image> {
    let columns = views.len().isqrt();
    caption(
        &contact_sheet(views, columns, PATCH_GAP)?,
        title,
        TITLE,
        color,
    )
}

fn outline(canvas: &mut Canvas, place: Crop, scale: f64, color: Color) -> Result<()> {
    let edges = [
        place.left,
        place.top,
        place.left + place.width,
        place.top + place.height,
    ];
    canvas.outline(edges.map(|edge| edge as f64 * scale), 2, 0, color)
}

fn degrees(turns: u32) -> String {
    format!("{}\u{b0}", 90 * turns)
}

#[cfg(test)]
mod tests {
    use pirl_data::transform::quarter_turns;
    use pirl_data::{
        DataConfig, ImageFolder, PackOptions, PretextConfig, PretextKind, ViewConfig,
        build_pretext, pack,
    };

    use super::*;
    use crate::sheet::caption_height;

    /// A pack of one image that fills a panel, whose red tells the column and green the row.
    fn coded() -> (tempfile::TempDir, Pack) {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let coded = |x: u32, y: u32| image::Rgb([x as u8, y as u8, 0]);
        let coded = image::RgbImage::from_fn(256, 200, coded);
        coded.save(images.join("1.png")).unwrap();
        let path = folder.path().join("coded");
        let source = ImageFolder::open(&images).unwrap();
        pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
        (folder, Pack::open(path).unwrap())
    }

    /// Crops, and nothing else.
    fn plain(of: &ViewConfig) -> ViewConfig {
        ViewConfig {
            scale: [0.2, 0.8],
            flip: 0.0,
            jitter_probability: 0.0,
            photometric: 0.0,
            gray: 0.0,
            blur_probability: 0.0,
            ..of.clone()
        }
    }

    fn panels_of(pack: &Pack, kind: PretextKind, seed: u64) -> Vec<Image> {
        let data = DataConfig {
            image_size: 64,
            patch_size: 16,
            ..DataConfig::default()
        };
        let view = ImageView::new(&data, &plain(&ViewConfig::default())).unwrap();
        let config = PretextConfig {
            kind,
            crop_size: 64,
            ..PretextConfig::default()
        };
        let patch = plain(&ViewConfig::patch());
        let pretext = build_pretext(&config, &data, &patch, 0).unwrap();
        panels(pack, 0, &view, Some(&*pretext), seed).unwrap()
    }

    /// Pixels of a panel, without its title.
    fn pixels(panel: &Image) -> impl Iterator<Item = (usize, usize, [u8; 3])> {
        let rows = caption_height(TITLE)..panel.height;
        let places = rows.flat_map(move |y| (0..panel.width).map(move |x| (x, y)));
        places.map(|(x, y)| (x, y - caption_height(TITLE), panel.pixel(x, y).unwrap()))
    }

    /// Left, top, right and bottom of what is drawn in a colour.
    fn drawn(panel: &Image, color: Color) -> [f64; 4] {
        let found = pixels(panel).filter(|(_, _, pixel)| *pixel == color);
        around(found.map(|(x, y, _)| (x, y)))
    }

    /// The same of the places that a picture's colours tell.
    fn shown(panel: &Image) -> [f64; 4] {
        let coded = pixels(panel).filter(|(_, _, [_, _, blue])| *blue == 0);
        around(coded.map(|(_, _, [x, y, _])| (x.into(), y.into())))
    }

    fn around(places: impl Iterator<Item = (usize, usize)>) -> [f64; 4] {
        let mut bounds = [usize::MAX, usize::MAX, 0, 0];
        for (x, y) in places {
            let [left, top, right, bottom] = bounds;
            bounds = [left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)];
        }
        bounds.map(|edge| edge as f64)
    }

    fn near(a: [f64; 4], b: [f64; 4], by: f64) {
        let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f64::max) <= by, "{a:?}, {b:?}");
    }

    #[test]
    fn outlines_are_where_the_crops_were_taken() {
        let (_folder, pack) = coded();
        for seed in 0..6 {
            for kind in [
                PretextKind::Jigsaw,
                PretextKind::Rotation,
                PretextKind::JigsawRotation,
            ] {
                let panels = panels_of(&pack, kind, seed);
                // A pixel of a view covers up to four of the image.
                near(drawn(&panels[0], color(1)), shown(&panels[2]), 4.0);
                // The second outline may cover parts of the first.
                let [left, top, right, bottom] = drawn(&panels[0], color(0));
                let [x0, y0, x1, y1] = shown(&panels[1]);
                assert!(left >= x0 - 4.0 && top >= y0 - 4.0, "{kind:?} {seed}");
                assert!(right <= x1 + 4.0 && bottom <= y1 + 4.0, "{kind:?} {seed}");
            }
            let view = ImageView::new(&DataConfig::default(), &plain(&ViewConfig::default()));
            let alone = panels_of_view(&pack, &view.unwrap(), seed);
            near(drawn(&alone[0], color(0)), shown(&alone[1]), 2.0);
        }
    }

    fn panels_of_view(pack: &Pack, view: &ImageView, seed: u64) -> Vec<Image> {
        panels(pack, 0, view, None, seed).unwrap()
    }

    #[test]
    fn patches_lie_where_they_were_cut() {
        let (_folder, pack) = coded();
        for seed in 0..6 {
            let panels = panels_of(&pack, PretextKind::Jigsaw, seed);
            let [_, _, crop, in_place, shuffled] = panels.as_slice() else {
                panic!("{} panels", panels.len());
            };
            // 16 pixels five times, and a number.
            let (wide, high) = (80, 80 + tag_height(NUMBER));
            let tile = |panel: &Image, place: usize| {
                let left = place % 3 * (wide + PATCH_GAP);
                let top = caption_height(TITLE) + place / 3 * (high + PATCH_GAP);
                let mut tile = Canvas::new(wide, high).unwrap();
                tile.paste((-(left as i64), -(top as i64)), panel);
                tile.into_image()
            };
            let mut moved = 0;
            for cell in 0..9 {
                let patch = tile(in_place, cell);
                // Where the outline of the patch is on the crop, four times as large there.
                let [left, top, right, bottom] = drawn(crop, color(cell));
                assert_eq!((right - left, bottom - top), (64.0, 64.0), "{cell}");
                let inside = pixels(crop).filter(|&(x, y, [_, _, blue])| {
                    let (x, y) = (x as f64, y as f64);
                    let within = (left..right).contains(&x) && (top..bottom).contains(&y);
                    within && blue == 0
                });
                let inside = around(inside.map(|(_, _, [x, y, _])| (x.into(), y.into())));
                near(shown(&patch), inside, 4.0);
                let places = (0..9).filter(|&place| tile(shuffled, place) == patch);
                let places: Vec<usize> = places.collect();
                assert_eq!(places.len(), 1, "patch {cell}");
                moved += usize::from(places != [cell]);
            }
            assert!(moved > 1);
        }
    }

    #[test]
    fn a_turned_view_is_the_view_beside_it_turned() {
        let (_folder, pack) = coded();
        let mut turned = Vec::new();
        for seed in 0..12 {
            let panels = panels_of(&pack, PretextKind::Rotation, seed);
            let [_, _, before, after] = panels.as_slice() else {
                panic!("{} panels", panels.len());
            };
            let picture = |panel: &Image| {
                let title = caption_height(TITLE);
                let mut picture = Canvas::new(panel.width, panel.height - title).unwrap();
                picture.paste((0, -(title as i64)), panel);
                picture.into_image()
            };
            let (before, after) = (picture(before), picture(after));
            let mut image = before.clone();
            let matches = (0..4).find(|&turns| {
                quarter_turns(&before, turns, &mut image);
                image == after
            });
            turned.push(matches.unwrap());
        }
        turned.sort_unstable();
        turned.dedup();
        assert_eq!(turned, [0, 1, 2, 3]);
    }
}
