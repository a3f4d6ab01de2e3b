//! The region proposal network (Ren et al., arXiv:1506.01497): where may something be?

use candle_core::{Device, Tensor};
use pirl_model::{ModelConfig, Ops, ParamSet, Winograd, ops};
use rand::Rng;

use super::anchors::AnchorConfig;
use super::box_coder::BoxCoder;
use super::boxes::{BBox, pairwise_iou};
use super::config::RpnConfig;
use super::data::Targets;
use super::loss::{Loss, binary_cross_entropy, smooth_l1};
use super::matcher::Matcher;
use super::proposals::{ProposalConfig, Proposals, RpnLevel, select_proposals};
use super::sample::subsample;
use crate::error::Result;

const CODER: BoxCoder = BoxCoder { weights: [1.0; 4] };

/// A 3x3 convolution and, on each cell, a score and a correction for each anchor.
pub(super) struct Rpn {
    config: RpnConfig,
    anchors: AnchorConfig,
    params: ParamSet,
    ops: Ops,
    winograd: Winograd,
}

/// What the network says about a batch.
pub(super) struct RpnOutput {
    /// `(n, anchors)`
    logits: Tensor,
    /// `(n, anchors, 4)`
    offsets: Tensor,
    anchors: Vec<BBox>,
    /// The numbers of `logits`, image by image.
    host_logits: Vec<Vec<f32>>,
    host_offsets: Vec<Vec<[f32; 4]>>,
}

/// Losses of the network, before the mean over images.
pub(super) struct RpnLoss {
    pub(super) objectness: f64,
    pub(super) boxes: f64,
    /// What is differentiated.
    pub(super) graph: Tensor,
}

impl Rpn {
    /// On maps of so many channels; weights start normal with 0.01, as in detectron2.
    pub(super) fn new(
        config: &RpnConfig,
        anchors: &AnchorConfig,
        channels: usize,
        seed: u64,
        (model, device): (&ModelConfig, &Device),
    ) -> Result<Self> {
        let each = anchors.per_cell();
        let params: [(&str, &[usize], f64); 6] = [
            ("conv.weight", &[channels, channels, 3, 3], 0.01),
            ("conv.bias", &[channels], 0.0),
            ("objectness_logits.weight", &[each, channels], 0.01),
            ("objectness_logits.bias", &[each], 0.0),
            ("anchor_deltas.weight", &[4 * each, channels], 0.01),
            ("anchor_deltas.bias", &[4 * each], 0.0),
        ];
        Ok(Self {
            config: config.clone(),
            anchors: anchors.clone(),
            params: ParamSet::normal(seed, &params, device)?,
            ops: model.ops,
            winograd: model.winograd,
        })
    }

    pub(super) fn params(&self) -> &ParamSet {
        &self.params
    }

    /// `features`: `(n, c, h, w)`.
    pub(super) fn forward(&self, features: &Tensor) -> Result<RpnOutput> {
        let param = |name: &str| self.params.tracked(name);
        let (n, c, h, w) = features.dims4()?;
        let conv2d = match (self.ops, self.winograd) {
            (Ops::Fast, Winograd::Auto) => ops::conv2d,
            (Ops::Fast, Winograd::Off) => ops::conv2d_direct,
            (Ops::Reference, _) => ops::reference::conv2d,
        };
        let x = conv2d(features, &param("conv.weight")?, 1, 1)?;
        // Channels last, so that a cell's anchors are neighbours.
        let x = x.permute((0, 2, 3, 1))?.reshape((n * h * w, c))?;
        let x = x.broadcast_add(&param("conv.bias")?)?.relu()?;
        let on_cells = |name: &str| -> Result<Tensor> {
            let weight = param(&format!("{name}.weight"))?;
            let bias = param(&format!("{name}.bias"))?;
            Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
        };
        let anchors = self.anchors.anchors((h, w));
        let logits = on_cells("objectness_logits")?.reshape((n, anchors.len()))?;
        let offsets = on_cells("anchor_deltas")?.reshape((n, anchors.len(), 4))?;
        let host_logits = logits.to_vec2()?;
        let host_offsets = offsets.flatten(1, 2)?.to_vec2::<f32>()?;
        let fours = |row: Vec<f32>| row.as_chunks::<4>().0.to_vec();
        Ok(RpnOutput {
            logits,
            offsets,
            anchors,
            host_logits,
            host_offsets: host_offsets.into_iter().map(fours).collect(),
        })
    }

    /// Losses over the anchors that `rng` draws of each image: binary cross-entropy and smooth L1,
    /// both sums over `samples` times the images, as in detectron2.
    pub(super) fn loss(
        &self,
        output: &RpnOutput,
        targets: &[Targets],
        rng: &mut dyn Rng,
    ) -> Result<RpnLoss> {
        let config = &self.config;
        let matcher = Matcher {
            negative_below: config.negative_iou as f32,
            positive_from: config.positive_iou as f32,
            allow_low_quality: true,
        };
        let anchors = &output.anchors;
        let entries = targets.len() * anchors.len();
        let (mut objectness, mut boxes) = (Loss::zero(entries), Loss::zero(4 * entries));
        for (image, targets) in targets.iter().enumerate() {
            let start = image * anchors.len();
            let (logits, offsets) = (&output.host_logits[image], &output.host_offsets[image]);
            let matches = matcher.matches(&pairwise_iou(&targets.boxes, anchors));
            let (count, fraction) = (config.samples, config.positive_fraction);
            let sample = subsample(&matches.labels, count, fraction, rng);
            for at in sample.negative {
                objectness.add(start + at, binary_cross_entropy(logits[at], false));
            }
            for at in sample.positive {
                objectness.add(start + at, binary_cross_entropy(logits[at], true));
                let target = CODER.encode(anchors[at], targets.boxes[matches.objects[at]]);
                for (i, (found, target)) in offsets[at].iter().zip(target).enumerate() {
                    let difference = f64::from(*found) - f64::from(target);
                    let term = smooth_l1(difference, config.smooth_l1_beta);
                    boxes.add(4 * (start + at) + i, term);
                }
            }
        }
        let share = 1.0 / (config.samples * targets.len().max(1)) as f64;
        let (objectness, boxes) = (objectness.scale(share), boxes.scale(share));
        let graph = (objectness.attach(&output.logits)? + boxes.attach(&output.offsets)?)?;
        Ok(RpnLoss {
            objectness: objectness.value,
            boxes: boxes.value,
            graph,
        })
    }

    /// Proposals of each image, whose `(height, width)` without padding is in `sizes`. They carry no
    /// gradient.
    pub(super) fn proposals(
        &self,
        output: &RpnOutput,
        sizes: &[(usize, usize)],
        training: bool,
    ) -> Result<Vec<Proposals>> {
        let config = &self.config;
        let (pre_nms_topk, post_nms_topk) = if training {
            (config.pre_nms_train, config.post_nms_train)
        } else {
            (config.pre_nms_test, config.post_nms_test)
        };
        let config = ProposalConfig {
            pre_nms_topk,
            post_nms_topk,
            nms_threshold: config.nms_iou,
            min_box_size: config.min_box_size as f32,
        };
        let device = match self.ops {
            Ops::Fast => output.logits.device(),
            Ops::Reference => &Device::Cpu,
        };
        let outputs = output.host_logits.iter().zip(&output.host_offsets);
        outputs
            .zip(sizes)
            .map(|((logits, offsets), size)| {
                let level = RpnLevel {
                    anchors: &output.anchors,
                    logits,
                    offsets,
                };
                Ok(select_proposals(&[level], &CODER, *size, &config, device)?)
            })
            .collect()
    }
}
