//! `pirl export`

use anyhow::{Context, Result, bail};
use candle_core::Device;
use pirl_model::{Stem, Trainable, detectron2_names, save_backbone};
use pirl_recipes::Recipe;
use serde_json::json;

use crate::args::{ExportArgs, ExportFormat};
use crate::output::{print, print_json};
use crate::weights::{self, Weights};

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let recipe = args.recipe.as_deref();
    let file = Weights {
        name: &args.weights,
        prefix: args.weights_prefix.as_deref(),
    };
    let loaded = weights::load(file, recipe, &args.settings, None, &Device::Cpu)?;
    let (backbone, recipe) = (&loaded.backbone, &loaded.recipe);
    let mut state = backbone.state()?;
    if args.format == ExportFormat::Detectron2 {
        if recipe.model.stem != Stem::Imagenet {
            bail!(
                "detectron2's ResNets begin with a 7x7 convolution and a max-pool, but these weights \
                 are of {}; export them with --format torchvision",
                recipe.model.network()
            );
        }
        state = detectron2_names(state);
    }
    save_backbone(&args.output, &state, loaded.precise_batch_norm)
        .with_context(|| format!("cannot export to {}", args.output.display()))?;
    if args.json {
        return print_json(&json!({
            "output": args.output,
            "format": args.format,
            "tensors": state.len(),
            "model": { "arch": recipe.model.arch, "width": recipe.model.width, "stem": recipe.model.stem, "channels": recipe.data.channels },
            "weights": loaded.origin,
            "precise_batch_norm": loaded.precise_batch_norm,
            "read": loaded.tensors,
        }));
    }
    let output = args.output.display();
    let use_it = match args.format {
        ExportFormat::Torchvision => format!(
            "network.load_state_dict(safetensors.torch.load_file(\"{output}\"), strict=False)  \
             # lacks fc alone"
        ),
        ExportFormat::Detectron2 => detectron2_use(&output.to_string(), recipe),
    };
    print(&format!("{output}: {} tensors\n{use_it}", state.len()))
}

/// How detectron2 gets to use the file: it reads pickles, and needs to know how images look.
fn detectron2_use(output: &str, recipe: &Recipe) -> String {
    let pixels = |values: &[f32]| {
        let values: Vec<_> = values.iter().map(|x| format!("{:.3}", 255.0 * x)).collect();
        values.join(", ")
    };
    format!(
        "torch.save({{\"model\": safetensors.torch.load_file(\"{output}\"), \
         \"matching_heuristics\": True}}, \"backbone.pth\")\n\
         MODEL.WEIGHTS backbone.pth  MODEL.RESNETS.STRIDE_IN_1X1 False  INPUT.FORMAT RGB\n\
         MODEL.PIXEL_MEAN [{}]  MODEL.PIXEL_STD [{}]",
        pixels(&recipe.data.mean),
        pixels(&recipe.data.std)
    )
}
