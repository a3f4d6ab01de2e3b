//! `pirl data stats`

use anyhow::{Result, bail};
use pirl_data::{DataError, ImageStatistics, Pack};
use serde_json::json;

use crate::args::StatsArgs;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn run(args: &StatsArgs) -> Result<()> {
    let pack = Pack::open(&args.pack)?;
    let counts = pack.counts()?;
    let interrupt = Interrupt::install()?;
    let sample = args.sample.map_or(0, |sample| sample as usize);
    let mut progress = None;
    let measured = ImageStatistics::of(
        &pack,
        sample,
        &mut |done, total| {
            progress
                .get_or_insert_with(|| Progress::new("measuring", "images", total as u64, 0))
                .at(done as u64, String::new);
        },
        &|| interrupt.seen(),
    );
    progress.inspect(Progress::finish);
    let measured = match measured {
        Err(DataError::Stopped { done, total, .. }) => {
            bail!(Interrupted(format!("{done} of {total} images measured")))
        }
        measured => measured?,
    };
    if args.json {
        return print_json(&json!({
            "images": pack.len(),
            "classes": pack.class_names(),
            "images_per_class": counts.images_per_class,
            "measured": measured,
        }));
    }
    print(&measured.describe(&pack, &counts))
}
