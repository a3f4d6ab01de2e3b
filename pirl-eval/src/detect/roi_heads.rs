//! What is it, and where exactly? The box head on the regions that the proposal network found.

use candle_core::{Device, Tensor};
use pirl_model::{C4, Mode, Ops, ParamSet};
use rand::Rng;

use super::box_coder::BoxCoder;
use super::boxes::{BBox, clip, pairwise_iou};
use super::config::{DetectTest, RoiConfig};
use super::data::Targets;
use super::detection::Detection;
use super::loss::{Loss, add_cross_entropy, smooth_l1, softmax};
use super::matcher::Matcher;
use super::nms::batched_nms;
use super::roi_align::{Roi, RoiAlignConfig, roi_align, roi_align_reference};
use super::sample::subsample;
use crate::error::Result;

/// Regions that go through res5 at once in tests, where nothing is kept for a backward pass.
const REGIONS_AT_ONCE: usize = 256;

/// Pooling, and the two linear layers on what res5 makes of a region.
pub(super) struct RoiHeads {
    config: RoiConfig,
    classes: usize,
    params: ParamSet,
    pool: RoiAlignConfig,
    ops: Ops,
}

/// Losses of the head.
pub(super) struct RoiLoss {
    pub(super) class: f64,
    pub(super) boxes: f64,
    /// What is differentiated.
    pub(super) graph: Tensor,
}

/// A region to learn from.
struct Example {
    roi: Roi,
    /// The class; as many as there are classes for background.
    label: usize,
    /// The object's box.
    object: Option<BBox>,
}

impl RoiHeads {
    /// Weights of the class scores start normal with 0.01, of the boxes with 0.001.
    pub(super) fn new(
        config: &RoiConfig,
        classes: usize,
        c4: &C4,
        seed: u64,
        (ops, device): (Ops, &Device),
    ) -> Result<Self> {
        let dim = c4.feature_dim();
        let params: [(&str, &[usize], f64); 4] = [
            ("cls_score.weight", &[classes + 1, dim], 0.01),
            ("cls_score.bias", &[classes + 1], 0.0),
            ("bbox_pred.weight", &[4 * classes, dim], 0.001),
            ("bbox_pred.bias", &[4 * classes], 0.0),
        ];
        Ok(Self {
            config: config.clone(),
            classes,
            params: ParamSet::normal(seed, &params, device)?,
            pool: RoiAlignConfig {
                output_size: (config.pool_size, config.pool_size),
                spatial_scale: 1.0 / c4.stride() as f64,
                sampling_ratio: config.sampling_ratio,
                aligned: true,
            },
            ops,
        })
    }

    pub(super) fn params(&self) -> &ParamSet {
        &self.params
    }

    fn coder(&self) -> BoxCoder {
        BoxCoder {
            weights: self.config.box_weights,
        }
    }

    /// Class logits `(r, classes + 1)` and offsets `(r, 4 classes)` of at least one region.
    fn predict(
        &self,
        c4: &C4,
        features: &Tensor,
        rois: &[Roi],
        mode: Mode,
    ) -> Result<(Tensor, Tensor)> {
        let roi_align = match self.ops {
            Ops::Fast => roi_align,
            Ops::Reference => roi_align_reference,
        };
        let regions = roi_align(features, rois, &self.pool)?;
        let x = c4.region_features(&regions, mode)?;
        let linear = |name: &str| -> Result<Tensor> {
            let weight = self.params.tracked(&format!("{name}.weight"))?;
            let bias = self.params.tracked(&format!("{name}.bias"))?;
            Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
        };
        Ok((linear("cls_score")?, linear("bbox_pred")?))
    }

    /// Losses over the regions that `rng` draws of each image's proposals and objects: the mean
    /// cross-entropy, and smooth L1 summed over objects' regions and divided by all regions, as in
    /// detectron2. `None` without any region.
    pub(super) fn loss(
        &self,
        c4: &C4,
        features: &Tensor,
        proposals: &[Vec<BBox>],
        targets: &[Targets],
        mode: Mode,
        rng: &mut dyn Rng,
    ) -> Result<Option<RoiLoss>> {
        let mut examples = Vec::new();
        for (image, (proposals, targets)) in proposals.iter().zip(targets).enumerate() {
            examples.extend(self.draw(image, proposals, targets, rng));
        }
        if examples.is_empty() {
            return Ok(None);
        }
        let rois: Vec<Roi> = examples.iter().map(|example| example.roi).collect();
        let (logits, offsets) = self.predict(c4, features, &rois, mode)?;
        let (host_logits, host_offsets) = (logits.to_vec2()?, offsets.to_vec2::<f32>()?);
        let (count, columns) = (examples.len(), 4 * self.classes);
        let mut class = Loss::zero(count * (self.classes + 1));
        let mut boxes = Loss::zero(count * columns);
        for (row, example) in examples.iter().enumerate() {
            let logits: &Vec<f32> = &host_logits[row];
            add_cross_entropy(&mut class, row * logits.len(), logits, example.label);
            let Some(object) = example.object else {
                continue;
            };
            let target = self.coder().encode(example.roi.bbox, object);
            for (i, target) in target.into_iter().enumerate() {
                let column = 4 * example.label + i;
                let difference = f64::from(host_offsets[row][column]) - f64::from(target);
                let term = smooth_l1(difference, self.config.smooth_l1_beta);
                boxes.add(row * columns + column, term);
            }
        }
        let share = 1.0 / count as f64;
        let (class, boxes) = (class.scale(share), boxes.scale(share));
        let graph = (class.attach(&logits)? + boxes.attach(&offsets)?)?;
        Ok(Some(RoiLoss {
            class: class.value,
            boxes: boxes.value,
            graph,
        }))
    }

    /// The regions of one image to learn from. Its objects are proposals too, so that there is
    /// something to learn from at the very start.
    fn draw(
        &self,
        image: usize,
        proposals: &[BBox],
        targets: &Targets,
        rng: &mut dyn Rng,
    ) -> Vec<Example> {
        let config = &self.config;
        let boxes: Vec<BBox> = proposals.iter().chain(&targets.boxes).copied().collect();
        let matcher = Matcher {
            negative_below: config.positive_iou as f32,
            positive_from: config.positive_iou as f32,
            allow_low_quality: false,
        };
        let matches = matcher.matches(&pairwise_iou(&targets.boxes, &boxes));
        let (samples, fraction) = (config.samples, config.positive_fraction);
        let sample = subsample(&matches.labels, samples, fraction, rng);
        let roi = |at: usize| Roi {
            image,
            bbox: boxes[at],
        };
        let positive = sample.positive.into_iter().map(|at| Example {
            roi: roi(at),
            label: targets.labels[matches.objects[at]],
            object: Some(targets.boxes[matches.objects[at]]),
        });
        let negative = sample.negative.into_iter().map(|at| Example {
            roi: roi(at),
            label: self.classes,
            object: None,
        });
        positive.chain(negative).collect()
    }

    /// What the head finds in each image: of each class the boxes whose score exceeds the threshold,
    /// suppressed class by class, and of all classes the best.
    pub(super) fn detect(
        &self,
        c4: &C4,
        features: &Tensor,
        proposals: &[Vec<BBox>],
        sizes: &[(usize, usize)],
        test: &DetectTest,
    ) -> Result<Vec<Vec<Detection>>> {
        let rois: Vec<Roi> = proposals
            .iter()
            .enumerate()
            .flat_map(|(image, boxes)| boxes.iter().map(move |&bbox| Roi { image, bbox }))
            .collect();
        let mut candidates: Vec<Vec<Detection>> = vec![Vec::new(); proposals.len()];
        for rois in rois.chunks(REGIONS_AT_ONCE) {
            let (logits, offsets) = self.predict(c4, &features.detach(), rois, Mode::Eval)?;
            let rows = logits.to_vec2()?.into_iter().zip(offsets.to_vec2()?);
            for (roi, (logits, offsets)) in rois.iter().zip(rows) {
                let (logits, offsets): (Vec<f32>, Vec<f32>) = (logits, offsets);
                let scores = softmax(&logits);
                let offsets = offsets.as_chunks::<4>().0;
                for (label, (offsets, score)) in offsets.iter().zip(scores).enumerate() {
                    let score = score as f32;
                    let bbox = self.coder().decode(*offsets, roi.bbox);
                    // Not a number is never above the threshold.
                    if f64::from(score) > test.score_threshold && bbox.iter().all(|x| x.is_finite())
                    {
                        candidates[roi.image].push(Detection {
                            bbox: clip(bbox, sizes[roi.image]),
                            label,
                            score,
                        });
                    }
                }
            }
        }
        Ok(candidates
            .into_iter()
            .map(|candidates| suppress(&candidates, test))
            .collect())
    }
}

fn suppress(candidates: &[Detection], test: &DetectTest) -> Vec<Detection> {
    let boxes: Vec<BBox> = candidates.iter().map(|found| found.bbox).collect();
    let scores: Vec<f32> = candidates.iter().map(|found| found.score).collect();
    let labels: Vec<usize> = candidates.iter().map(|found| found.label).collect();
    let kept = batched_nms(&boxes, &scores, &labels, test.nms_iou);
    let kept = kept.into_iter().take(test.detections);
    kept.map(|index| candidates[index]).collect()
}
