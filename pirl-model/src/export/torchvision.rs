//! torchvision's names in a safetensors file.

use std::path::Path;

use super::{Export, Exporter};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::trainable::Trainable;
use crate::weights::save_backbone;

/// `conv1.weight`, `layer1.0.conv1.weight`, ...: what `load_state_dict` takes. Any network of this crate's.
pub(super) struct Torchvision;

impl Exporter for Torchvision {
    fn name(&self) -> &'static str {
        "torchvision"
    }

    fn title(&self) -> &'static str {
        "FILE.safetensors with conv1.weight, layer1.0.conv1.weight, ...: for load_state_dict"
    }

    fn check(&self, _: &ModelConfig) -> Result<()> {
        Ok(())
    }

    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize> {
        let state = export.backbone.state()?;
        save_backbone(output, &state, export.precise_batch_norm)?;
        Ok(state.len())
    }

    fn usage(&self, export: &Export<'_>, output: &Path) -> String {
        let config = export.backbone.config();
        let first = match config.channels {
            3 => String::new(),
            channels => format!(
                "network.conv1 = torch.nn.Conv2d({channels}, network.conv1.out_channels, 7, 2, 3, bias=False)\n"
            ),
        };
        format!(
            "{first}network.load_state_dict(safetensors.torch.load_file(\"{}\"), strict=False)  # lacks fc alone",
            output.display()
        )
    }
}
