//! The head f of a checkpoint, without the rest of its training.

use std::path::Path;

use candle_core::Device;
use pirl_model::{HeadKind, ModelConfig, ProjectionHead, Trainable, load_state_dict, strip_prefix};

use super::IMAGE_HEAD;
use crate::checkpoint::{BACKBONE, MODEL};
use crate::error::{Result, TrainError};

/// f, which makes embeddings of the features of images, as the checkpoint has it that the file `weights`
/// belongs to: its `model.safetensors`, or the `backbone.safetensors` beside it. `config` is of the
/// backbone; whether f is linear or an MLP, and how long its embeddings are, its tensors say.
///
/// # Errors
/// [`TrainError::Model`] for a file that cannot be read; [`TrainError::Checkpoint`] if it has no f, which
/// runs of PIRL and NPID alone have.
pub fn read_image_head(
    weights: &Path,
    config: &ModelConfig,
    device: &Device,
) -> Result<ProjectionHead> {
    let is_backbone = weights.file_name().is_some_and(|name| name == BACKBONE);
    let path = match is_backbone {
        true => weights.with_file_name(MODEL),
        false => weights.to_owned(),
    };
    let state = strip_prefix(&load_state_dict(&path)?, IMAGE_HEAD);
    let size = |name: &str| state.get(name).and_then(|weight| weight.dims2().ok());
    let (head, last, first) = match (size("fc.weight"), size("fc1.weight"), size("fc2.weight")) {
        (Some(fc), None, None) => (HeadKind::Linear, fc, fc),
        (None, Some(first), Some(last)) => (HeadKind::Mlp, last, first),
        _ => {
            let reason = format!(
                "it has no head f ({IMAGE_HEAD}fc.weight), which only runs of PIRL and NPID have"
            );
            return Err(TrainError::Checkpoint { path, reason });
        }
    };
    let config = ModelConfig {
        head,
        ..config.clone()
    };
    let head = ProjectionHead::new(&config, first.1, last.0, 0, device)?;
    head.load(&state)?.ensure_whole()?;
    Ok(head)
}
