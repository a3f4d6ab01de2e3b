//! ONNX, batch norms folded into the convolutions before them.

use std::path::Path;

use prost::Message;

use super::{Export, Exporter, refused};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::onnx::{Note, model_of};
use crate::resnet::parameter_count;

/// A file of opset 17: `images` `(batch, channels, height, width)`, normalised, to `features` `(batch, c)`; sizes may
/// be any. The maps inside are called `res2` to `res5`. Any network of this crate's below ONNX's 2 GiB.
pub(super) struct Onnx;

/// The most bytes that a message of Protocol Buffers may have.
const LARGEST: u64 = i32::MAX as u64;

impl Exporter for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn title(&self) -> &'static str {
        "FILE.onnx, batch norms folded, for any batch and size: for onnxruntime"
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        let bytes = 4 * parameter_count(config)? as u64;
        if bytes + (1 << 20) > LARGEST {
            let reason = format!(
                "a file has at most 2 GiB, and its weights take {} MiB",
                bytes >> 20
            );
            return Err(refused(self.name(), config, &reason));
        }
        Ok(())
    }

    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize> {
        self.check(export.backbone.config())?;
        let view = &export.view;
        let list = |values: &[f32]| {
            values
                .iter()
                .map(f32::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let mut notes = vec![
            Note::new("resize", view.resize),
            Note::new("crop", view.crop),
            Note::new("mean", list(&view.mean)),
            Note::new("std", list(&view.std)),
        ];
        notes.extend(export.precise_batch_norm.map(Note::precise_batch_norm));
        let model = model_of(export.backbone, notes)?;
        pirl_core::file::write(output, &model.encode_to_vec()).map_err(|source| {
            ModelError::Io {
                path: output.to_owned(),
                source,
            }
        })?;
        Ok(model.tensors())
    }

    fn usage(&self, export: &Export<'_>, output: &Path) -> String {
        format!(
            "session = onnxruntime.InferenceSession(\"{}\")\n\
             features, = session.run([\"features\"], {{\"images\": images}})  # float32 (batch, {}, height, width)",
            output.display(),
            export.backbone.config().channels
        )
    }
}
