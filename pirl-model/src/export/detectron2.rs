//! detectron2's names in a safetensors file.

use std::path::Path;

use super::{Export, Exporter, only_imagenet_stem, refused};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::trainable::Trainable;
use crate::weights::{Names, renamed, save_backbone};

/// `stem.conv1.weight`, `stem.conv1.norm.weight`, `res2.0.conv1.weight`, `res2.0.shortcut.weight`, up to
/// `res5`, as its `R-50.pkl` has them.
pub(super) struct Detectron2;

impl Exporter for Detectron2 {
    fn name(&self) -> &'static str {
        "detectron2"
    }

    fn title(&self) -> &'static str {
        "FILE.safetensors with stem.conv1.weight, res2.0.conv1.weight, ... up to res5: for MODEL.WEIGHTS"
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        only_imagenet_stem(self.name(), config)?;
        if config.channels != 3 {
            let reason = "it reads colour images (data.channels = 3)";
            return Err(refused(self.name(), config, reason));
        }
        Ok(())
    }

    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize> {
        self.check(export.backbone.config())?;
        let state = renamed(export.backbone.state()?, Names::Detectron2);
        save_backbone(output, &state, export.precise_batch_norm)?;
        Ok(state.len())
    }

    /// It reads pickles, and must be told how images look.
    fn usage(&self, export: &Export<'_>, output: &Path) -> String {
        let pixels = |values: &[f32]| {
            let pixels = values.iter().map(|x| format!("{:.3}", 255.0 * x));
            pixels.collect::<Vec<_>>().join(", ")
        };
        format!(
            "torch.save({{\"model\": safetensors.torch.load_file(\"{}\"), \
             \"matching_heuristics\": True}}, \"backbone.pth\")\n\
             MODEL.WEIGHTS backbone.pth  MODEL.RESNETS.STRIDE_IN_1X1 False  INPUT.FORMAT RGB\n\
             MODEL.PIXEL_MEAN [{}]  MODEL.PIXEL_STD [{}]",
            output.display(),
            pixels(&export.view.mean),
            pixels(&export.view.std)
        )
    }
}
