//! `pirl data preview`

use std::io::Cursor;

use anyhow::{Context, Result};
use image::{ImageFormat, RgbImage};
use pirl_data::{ImageView, Pack, build_pretext, preview_sheet};

use crate::args::PreviewArgs;
use crate::files;
use crate::output::print;
use crate::recipe::Recipe;

pub(crate) fn run(args: &PreviewArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe, &args.settings)?;
    let pack = Pack::open(&args.pack)?;
    let view = ImageView::new(&recipe.data, &recipe.transform.image)?;
    let pretext = build_pretext(
        &recipe.pretext,
        &recipe.data,
        &recipe.transform.patch,
        recipe.seed,
    )?;
    let count = (args.count as usize).min(pack.len());
    let sheet = preview_sheet(&pack, &view, Some(&*pretext), count, recipe.seed)?;
    let (width, height) = (u32::try_from(sheet.width)?, u32::try_from(sheet.height)?);
    let picture = RgbImage::from_raw(width, height, sheet.pixels)
        .context("the sheet's pixels do not fill it")?;
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .context("encoding the sheet as PNG")?;
    files::write_whole(&args.output, png.get_ref())?;
    print(&format!(
        "{}: {count} images, {width} x {height} pixels",
        args.output.display()
    ))
}
