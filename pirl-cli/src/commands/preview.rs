//! `pirl data preview`

use anyhow::Result;
use pirl_data::{ImageView, Pack, build_pretext};
use pirl_report::{preview_sheet, write_png};

use crate::args::PreviewArgs;
use crate::output::print;

pub(crate) fn run(args: &PreviewArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
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
    let (width, height) = (sheet.width, sheet.height);
    write_png(&args.output, &sheet)?;
    print(&format!(
        "{}: {count} images, {width} x {height} pixels",
        args.output.display()
    ))
}
