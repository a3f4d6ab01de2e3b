//! ROIAlign and non-maximum suppression at the sizes of `peers/cases.json`, which their PyTorch twin
//! reads too.

use std::hint::black_box;

use candle_core::{Device, Tensor, Var};
use pirl_eval::detect::{BBox, Roi, RoiAlignConfig, nms, roi_align};
use serde::Deserialize;

/// Pixels of the image for a cell of its map.
const STRIDE: usize = 16;

/// What to run on how many boxes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Case {
    /// On a map of `height` by `width` cells.
    RoiAlign {
        boxes: usize,
        channels: usize,
        height: usize,
        width: usize,
        output: usize,
        backward: bool,
    },
    Nms {
        boxes: usize,
        threshold: f64,
    },
}

impl Case {
    /// One run of the case.
    pub(crate) fn runner(self) -> Box<dyn FnMut()> {
        match self {
            Self::Nms { boxes, threshold } => {
                let (scores, boxes) = (benches::fill(2, boxes), regions(boxes, (800, 600)));
                Box::new(move || {
                    black_box(nms(&boxes, &scores, threshold));
                })
            }
            Self::RoiAlign {
                boxes,
                channels,
                height,
                width,
                output,
                backward,
            } => {
                let rois: Vec<Roi> = regions(boxes, (width * STRIDE, height * STRIDE))
                    .into_iter()
                    .map(|bbox| Roi { image: 0, bbox })
                    .collect();
                let config = RoiAlignConfig {
                    output_size: (output, output),
                    spatial_scale: 1.0 / STRIDE as f64,
                    ..Default::default()
                };
                let numbers = benches::fill(3, channels * height * width);
                let shape = (1, channels, height, width);
                let features = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
                let features = Var::from_tensor(&features).unwrap();
                Box::new(move || {
                    if backward {
                        let out = roi_align(&features, &rois, &config).unwrap();
                        // As it lies in memory: Candle sums a permuted view very slowly.
                        let out = out.permute((0, 2, 3, 1)).unwrap();
                        black_box(out.sum_all().unwrap().backward().unwrap());
                    } else {
                        let features = features.as_detached_tensor();
                        black_box(roi_align(&features, &rois, &config).unwrap());
                    }
                })
            }
        }
    }
}

/// Boxes like proposals: sides of 16 to 512 pixels, inside the image.
fn regions(count: usize, (width, height): (usize, usize)) -> Vec<BBox> {
    let (width, height) = (width as f32, height as f32);
    let one = |t: &[f32; 4]| {
        let (x, y) = ((t[0] + 1.0) / 2.0 * width, (t[1] + 1.0) / 2.0 * height);
        let side = |t: f32| 16.0 * ((t + 1.0) * 2.5).exp2();
        [
            x,
            y,
            (x + side(t[2])).min(width),
            (y + side(t[3])).min(height),
        ]
    };
    benches::fill(1, 4 * count)
        .as_chunks()
        .0
        .iter()
        .map(one)
        .collect()
}
