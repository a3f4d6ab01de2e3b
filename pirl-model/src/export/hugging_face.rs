//! A model folder of Hugging Face's: `config.json`, `model.safetensors`, `preprocessor_config.json` and the
//! model card `README.md`.

use std::path::Path;

use serde_json::json;

use super::{Export, Exporter, only_imagenet_stem, write_folder};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::export;
use crate::residual::stage_channels;
use crate::trainable::Trainable;
use crate::weights::{Names, renamed};

/// What transformers' `ResNetModel`, `ResNetBackbone` and `AutoModel` read: any depth and width.
pub(super) struct HuggingFace;

impl Exporter for HuggingFace {
    fn name(&self) -> &'static str {
        "hugging-face"
    }

    fn title(&self) -> &'static str {
        "a folder with config.json, model.safetensors and a model card: for transformers' ResNetModel"
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        only_imagenet_stem(self.name(), config)
    }

    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize> {
        let config = export.backbone.config();
        self.check(config)?;
        let mut hidden_sizes = [0; 4];
        for (stage, channels) in hidden_sizes.iter_mut().enumerate() {
            *channels = stage_channels(config, stage)?;
        }
        let network = json!({
            "architectures": ["ResNetModel"],
            "model_type": "resnet",
            "num_channels": config.channels,
            "embedding_size": config.stem_channels()?,
            "hidden_sizes": hidden_sizes,
            "depths": config.arch.blocks(),
            "layer_type": if config.arch.bottleneck() { "bottleneck" } else { "basic" },
            "hidden_act": "relu",
            "downsample_in_first_stage": false,
            "downsample_in_bottleneck": false,
            "dtype": "float32",
        });
        let view = &export.view;
        let preprocessor = json!({
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": true,
            "do_resize": true,
            "size": { "shortest_edge": view.resize },
            "resample": 2, // bilinear
            "do_center_crop": true,
            "crop_size": { "height": view.crop, "width": view.crop },
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": true,
            "image_mean": export::decimal(&view.mean),
            "image_std": export::decimal(&view.std),
        });
        let state = renamed(export.backbone.state()?, Names::HuggingFace);
        let files = [
            ("config.json", &export::json(&network)[..]),
            ("preprocessor_config.json", &export::json(&preprocessor)[..]),
            ("README.md", export.card.as_bytes()),
        ];
        write_folder(output, export, &state, &files)?;
        Ok(state.len())
    }

    fn usage(&self, _: &Export<'_>, output: &Path) -> String {
        let folder = output.display();
        format!(
            "processor = transformers.AutoImageProcessor.from_pretrained(\"{folder}\")\n\
             model = transformers.ResNetModel.from_pretrained(\"{folder}\")\n\
             features = model(**processor(image, return_tensors=\"pt\")).pooler_output.flatten(1)"
        )
    }
}
