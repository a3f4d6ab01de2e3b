//! timm's folder: `config.json` and `model.safetensors`, as its `save_for_hf` writes them.

use std::path::Path;

use serde_json::json;

use super::{Export, Exporter, only_imagenet_stem, refused, write_folder};
use crate::config::{Arch, ModelConfig};
use crate::error::Result;
use crate::trainable::Trainable;
use crate::{Backbone, export};

/// A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads. Its ResNets have torchvision's
/// names, a stem of 64 channels whatever `channels` says, and so no other width.
pub(super) struct Timm;

impl Exporter for Timm {
    fn name(&self) -> &'static str {
        "timm"
    }

    fn title(&self) -> &'static str {
        "a folder with config.json and model.safetensors: for timm.create_model(\"local-dir:FOLDER\")"
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        only_imagenet_stem(self.name(), config)?;
        if config.width != 1.0 {
            let reason = "its ResNets begin with 64 channels (model.width = 1)";
            return Err(refused(self.name(), config, reason));
        }
        Ok(())
    }

    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize> {
        let config = export.backbone.config();
        self.check(config)?;
        let (view, features) = (&export.view, export.backbone.feature_dim());
        let (arch, model_args) = architecture(config);
        let config = json!({
            "architecture": arch,
            "num_classes": 0,
            "num_features": features,
            "global_pool": "avg",
            "model_args": model_args,
            "pretrained_cfg": {
                "tag": "pirl",
                "custom_load": false,
                "input_size": [config.channels, view.crop, view.crop],
                "fixed_input_size": false,
                "interpolation": "bilinear",
                "crop_pct": view.crop as f64 / view.resize.max(view.crop) as f64,
                "crop_mode": "center",
                "mean": export::decimal(&view.mean),
                "std": export::decimal(&view.std),
                "num_classes": 0,
                "pool_size": [7, 7],
                "first_conv": "conv1",
                "classifier": "fc",
            },
        });
        let state = export.backbone.state()?;
        let files = [
            ("config.json", &export::json(&config)[..]),
            ("README.md", export.card.as_bytes()),
        ];
        write_folder(output, export, &state, &files)?;
        Ok(state.len())
    }

    fn usage(&self, export: &Export<'_>, output: &Path) -> String {
        let folder = output.display();
        let config = export.backbone.config();
        let (arch, model_args) = architecture(config);
        let layers = match model_args.get("layers") {
            Some(layers) => format!(", layers={layers}"),
            None => String::new(),
        };
        let channels = match config.channels {
            3 => String::new(),
            channels => format!(", in_chans={channels}"),
        };
        format!(
            "model = timm.create_model(\"local-dir:{folder}\", pretrained=True)  # features_only=True: its maps\n\
             # or: timm.create_model(\"{arch}\", num_classes=0{layers}{channels}, \
             checkpoint_path=\"{folder}/model.safetensors\")"
        )
    }
}

/// The name of timm's network, and what it is changed by.
fn architecture(config: &ModelConfig) -> (String, serde_json::Value) {
    let (arch, channels) = (config.arch, config.channels);
    let mut model_args = json!({ "num_classes": 0, "in_chans": channels, "global_pool": "avg" });
    if arch == Arch::Resnet10 {
        model_args["layers"] = json!(arch.blocks());
        return (Arch::Resnet18.to_string(), model_args);
    }
    (arch.to_string(), model_args)
}
