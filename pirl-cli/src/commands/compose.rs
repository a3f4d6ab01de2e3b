//! `pirl data compose`

use anyhow::Result;
use pirl_data::Pack;
use pirl_scenes::{SceneConfig, compose_scenes};
use serde_json::json;

use crate::args::ComposeArgs;
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn run(args: &ComposeArgs) -> Result<()> {
    let pack = Pack::open(&args.input)?;
    let config = SceneConfig {
        scenes: args.scenes as usize,
        seed: args.seed,
        ..SceneConfig::default()
    };
    let report = Progress::watch("composing", "scenes", config.scenes, |progress| {
        compose_scenes(&pack, &args.output, &args.split, &config, progress)
    })?;
    if args.json {
        return print_json(&json!({
            "output": args.output,
            "split": args.split,
            "scenes": report.scenes,
            "objects": report.objects,
            "difficult": report.difficult,
        }));
    }
    print(&format!(
        "{}: {} scenes with {} objects, {} of them difficult",
        args.output.display(),
        report.scenes,
        report.objects,
        report.difficult
    ))
}
