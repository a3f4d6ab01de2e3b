//! The geometry and ops of the detector against torchvision (`golden/make_detect.py` wrote the
//! expected numbers), finite differences and plain twins.

use std::collections::HashMap;

use benches::fill;
use candle_core::{DType, Device, Result, Tensor, Var};
use pirl_eval::detect::{
    AnchorConfig, BBox, BoxCoder, MatchLabel, Matcher, ProposalConfig, Roi, RoiAlignConfig,
    RpnLevel, batched_nms, nms, nms_reference, pairwise_iou, roi_align, roi_align_reference,
    select_proposals,
};

const CPU: Device = Device::Cpu;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> Result<Self> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/detect.safetensors"
        );
        candle_core::safetensors::load(path, &CPU).map(Self)
    }

    fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        self.0[name].flatten_all()?.to_vec1()
    }

    fn boxes(&self, name: &str) -> Result<Vec<BBox>> {
        Ok(self.0[name].to_vec2()?.into_iter().map(bbox).collect())
    }

    fn indices(&self, name: &str) -> Result<Vec<usize>> {
        let indices: Vec<u32> = self.0[name].to_vec1()?;
        Ok(indices.into_iter().map(|i| i as usize).collect())
    }
}

fn bbox(row: Vec<f32>) -> BBox {
    row.try_into().expect("four numbers")
}

fn assert_close(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance,
            "{name}: entry {i} is {g}, should be {w}"
        );
    }
}

/// `boxes` of the script.
fn boxes(seed: u32, count: usize, spread: f32, size: f32) -> Vec<BBox> {
    let numbers = fill(seed, 4 * count);
    let one = |t: &[f32]| {
        let (x, y) = ((t[0] + 1.0) * spread, (t[1] + 1.0) * spread);
        [x, y, x + (t[2] + 1.0) * size, y + (t[3] + 1.0) * size]
    };
    numbers.chunks_exact(4).map(one).collect()
}

/// `ALIGNS` of the script: the shape of the features, and how they are sampled.
fn aligns() -> Vec<((usize, usize, usize, usize), RoiAlignConfig)> {
    let case = |shape, output_size, cells: f64, sampling_ratio, aligned| {
        let config = RoiAlignConfig {
            output_size,
            spatial_scale: 1.0 / cells,
            sampling_ratio,
            aligned,
        };
        (shape, config)
    };
    vec![
        case((2, 3, 13, 17), (7, 7), 16.0, 0, true),
        case((2, 2, 13, 17), (3, 5), 16.0, 2, true),
        case((2, 2, 13, 17), (4, 2), 16.0, 0, false),
        case((2, 1, 5, 3), (2, 3), 4.0, 3, false),
        case((2, 5, 1, 1), (2, 2), 16.0, 0, true),
        case((2, 17, 4, 6), (1, 1), 48.0, 0, true),
    ]
}

fn regions(golden: &Golden) -> Result<Vec<Roi>> {
    let rows: Vec<Vec<f32>> = golden.0["align.regions"].to_vec2()?;
    let roi = |row: Vec<f32>| Roi {
        image: row[0] as usize,
        bbox: bbox(row[1..].to_vec()),
    };
    Ok(rows.into_iter().map(roi).collect())
}

type Align = fn(&Tensor, &[Roi], &RoiAlignConfig) -> Result<Tensor>;
const BOTH: [(&str, Align); 2] = [("op", roi_align), ("reference", roi_align_reference)];

/// The output, and the gradient of its product with `fill(2)`.
fn with_gradient(
    align: Align,
    features: &Var,
    rois: &[Roi],
    config: &RoiAlignConfig,
) -> Result<(Tensor, Tensor)> {
    let out = align(features, rois, config)?;
    let weights = Tensor::from_vec(fill(2, out.elem_count()), out.shape(), &CPU)?;
    let loss = (&out * weights.to_dtype(out.dtype())?)?.sum_all()?;
    let mut gradients = loss.backward()?;
    let gradient = gradients.remove(features).expect("a gradient");
    Ok((out, gradient))
}

#[test]
fn roi_align_and_its_gradient_are_torchvisions() -> Result<()> {
    let golden = Golden::load()?;
    let rois = regions(&golden)?;
    for (i, (shape, config)) in aligns().into_iter().enumerate() {
        for dtype in [DType::F32, DType::F64] {
            let (n, c, h, w) = shape;
            let x = Tensor::from_vec(fill(1, n * c * h * w), shape, &CPU)?.to_dtype(dtype)?;
            let x = Var::from_tensor(&x)?;
            for (by, align) in BOTH {
                let (out, gradient) = with_gradient(align, &x, &rois, &config)?;
                for (part, got) in [("out", out), ("d_features", gradient)] {
                    assert_eq!(got.dims(), golden.0[&format!("align{i}.{part}")].dims());
                    let got = got.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                    let name = format!("align{i}.{part}");
                    // torchvision's sums of up to 200 samples are in single precision too.
                    let want = golden.numbers(&name)?;
                    let scale = want.iter().fold(1f32, |m, v| m.max(v.abs()));
                    assert_close(
                        &format!("{name}, {by}, {dtype:?}"),
                        &got,
                        &want,
                        1e-5 * scale,
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn roi_aligns_gradient_is_that_of_finite_differences() -> Result<()> {
    let golden = Golden::load()?;
    let rois = regions(&golden)?;
    let shape = (2, 2, 5, 4);
    let config = RoiAlignConfig {
        output_size: (3, 2),
        spatial_scale: 1.0 / 48.0,
        ..Default::default()
    };
    let numbers: Vec<f64> = fill(1, 80).into_iter().map(f64::from).collect();
    // Squared, so that the gradient depends on the features.
    let loss = |x: &Tensor| roi_align(x, &rois, &config)?.sqr()?.sum_all();
    let x = Var::from_tensor(&Tensor::from_slice(&numbers, shape, &CPU)?)?;
    // Used twice, so that a gradient that overwrites shows.
    let mut gradients = (loss(&x)? + loss(&(x.as_tensor() * 2.0)?)?)?.backward()?;
    let gradient: Vec<f64> = gradients
        .remove(&x)
        .expect("one")
        .flatten_all()?
        .to_vec1()?;
    for (i, &got) in gradient.iter().enumerate() {
        let at = |step: f64| -> Result<f64> {
            let mut moved = numbers.clone();
            moved[i] += step;
            let x = Tensor::from_vec(moved, shape, &CPU)?;
            (loss(&x)? + loss(&(x * 2.0)?)?)?.to_scalar()
        };
        let want = (at(1e-4)? - at(-1e-4)?) / 2e-4;
        assert!(
            (got - want).abs() < 1e-7 * want.abs().max(1.0),
            "{i}: {got}, should be {want}"
        );
    }
    Ok(())
}

#[test]
fn roi_align_does_not_depend_on_threads_layout_or_channels_per_thread() -> Result<()> {
    let rois: Vec<Roi> = boxes(9, 40, 100.0, 80.0)
        .into_iter()
        .enumerate()
        .map(|(i, bbox)| Roi { image: i % 3, bbox })
        .collect();
    let x = Tensor::from_vec(fill(1, 3 * 100 * 11 * 9), (3, 100, 11, 9), &CPU)?;
    let config = RoiAlignConfig {
        output_size: (5, 4),
        ..Default::default()
    };
    let run = |threads: usize, x: &Tensor| -> Result<(Vec<f32>, Vec<f32>)> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| {
            let x = Var::from_tensor(x)?;
            let (out, d) = with_gradient(roi_align, &x, &rois, &config)?;
            Ok((out.flatten_all()?.to_vec1()?, d.flatten_all()?.to_vec1()?))
        })
    };
    let one = run(1, &x)?;
    for threads in [2, 3, 7] {
        assert!(run(threads, &x)? == one, "{threads} threads");
    }
    let last = x
        .permute((0, 2, 3, 1))?
        .contiguous()?
        .permute((0, 3, 1, 2))?;
    let out = roi_align(&last, &rois, &config)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    assert!(out == one.0, "channels last");
    let x = Var::from_tensor(&x)?;
    let (out, d) = with_gradient(roi_align_reference, &x, &rois, &config)?;
    assert_close("out", &out.flatten_all()?.to_vec1()?, &one.0, 1e-5);
    assert_close("gradient", &d.flatten_all()?.to_vec1()?, &one.1, 1e-4);
    Ok(())
}

#[test]
fn roi_align_of_no_or_enormous_regions() -> Result<()> {
    let x = Var::from_tensor(&Tensor::ones((1, 2, 6, 5), DType::F32, &CPU)?)?;
    let config = RoiAlignConfig::default();
    for (_, align) in BOTH {
        assert_eq!(align(&x, &[], &config)?.dims(), [0, 2, 14, 14]);
        // 62,500 samples a cell each way, of which 7 by 6 are near enough to the map of ones.
        let far = 7e6;
        let bbox = [-far, -far, far, far];
        let out = align(&x, &[Roi { image: 0, bbox }], &config)?;
        let (got, cell) = (out.sum_all()?.to_scalar::<f32>()?, far / 7.0 / 16.0);
        assert!(
            (got * cell * cell / (2.0 * 8.0 * 7.0) - 1.0).abs() < 0.4,
            "{got}"
        );
    }
    Ok(())
}

#[test]
fn roi_align_refuses_what_it_cannot_sample() -> Result<()> {
    let x = Tensor::zeros((2, 3, 4, 5), DType::F32, &CPU)?;
    let good = Roi {
        image: 1,
        bbox: [0.0, 0.0, 9.0, 9.0],
    };
    let config = RoiAlignConfig::default();
    let refused = |x: &Tensor, roi: Roi, config: RoiAlignConfig| {
        for (_, align) in BOTH {
            let error = align(x, &[good, roi], &config).unwrap_err().to_string();
            assert!(error.lines().next().is_some_and(|line| !line.is_empty()));
        }
        roi_align(x, &[good, roi], &config).unwrap_err().to_string()
    };
    let beyond = Roi { image: 2, ..good };
    assert!(refused(&x, beyond, config).contains("region 1 is of image 2"));
    let nan = Roi {
        bbox: [0.0, f32::NAN, 1.0, 1.0],
        ..good
    };
    assert!(refused(&x, nan, config).contains("not finite"));
    let far = Roi {
        bbox: [0.0, 0.0, 1e9, 1.0],
        ..good
    };
    assert!(refused(&x, far, config).contains("farther"));
    let size = RoiAlignConfig {
        output_size: (0, 3),
        ..config
    };
    assert!(refused(&x, good, size).contains("0x3"));
    let scale = RoiAlignConfig {
        spatial_scale: 0.0,
        ..config
    };
    assert!(refused(&x, good, scale).contains("positive scale"));
    let empty = Tensor::zeros((2, 3, 0, 5), DType::F32, &CPU)?;
    assert!(refused(&empty, good, config).contains("0x5"));
    refused(&x.get(0)?, good, config);
    Ok(())
}

#[test]
fn nms_keeps_what_torchvision_keeps() -> Result<()> {
    let golden = Golden::load()?;
    for count in [300, 1100] {
        let mut boxes = boxes(3, count, 200.0, 40.0);
        for bbox in boxes.iter_mut().step_by(50) {
            (bbox[2], bbox[3]) = (bbox[0], bbox[1]);
        }
        let whole: Vec<BBox> = boxes.iter().map(|b| b.map(f32::round_ties_even)).collect();
        let scores = fill(4, count);
        let tied: Vec<f32> = scores.iter().map(|s| (s * 8.0).round_ties_even()).collect();
        let classes: Vec<usize> = (0..count).map(|i| i * 7 % 11 % 5).collect();
        for threshold in [0.3, 0.5, 0.7] {
            for (suffix, boxes, scores) in [("", &boxes, &scores), (".tied", &whole, &tied)] {
                let name = format!("nms{count}.{threshold}{suffix}");
                assert!(
                    nms(boxes, scores, threshold) == golden.indices(&name)?,
                    "{name}"
                );
                let kept = batched_nms(boxes, scores, &classes, threshold);
                let name = format!("batched_{name}");
                assert!(kept == golden.indices(&name)?, "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn nms_keeps_boxes_without_area_and_nothing_of_nothing() {
    assert!(nms(&[], &[], 0.5).is_empty());
    assert!(batched_nms(&[], &[], &[], 0.5).is_empty());
    let point = [3.0, 3.0, 3.0, 3.0];
    assert_eq!(nms(&[point; 3], &[0.1, 0.3, 0.2], 0.5), [1, 2, 0]);
    // An IoU of exactly the threshold stays.
    let halves = [[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]];
    assert_eq!(nms(&halves, &[0.5, 0.4], 0.5), [0, 1]);
    assert_eq!(nms(&halves, &[0.5, 0.4], 0.499), [0]);
    assert_eq!(nms(&halves, &[0.5, f32::NAN], 0.4), [1]);
    assert_eq!(batched_nms(&halves, &[0.4, 0.5], &[7, 2], 0.1), [1, 0]);
}

#[test]
fn boxes_are_coded_as_in_torchvision() -> Result<()> {
    let golden = Golden::load()?;
    let [src, dst] = [5, 6].map(|seed| {
        let mut boxes = boxes(seed, 40, 200.0, 40.0);
        boxes
            .iter_mut()
            .for_each(|b| (b[2], b[3]) = (b[2] + 1.0, b[3] + 1.0));
        boxes
    });
    for (i, weights) in [[1.0; 4], [10.0, 10.0, 5.0, 5.0]].into_iter().enumerate() {
        let coder = BoxCoder { weights };
        let offsets: Vec<BBox> = src
            .iter()
            .zip(&dst)
            .map(|(s, d)| coder.encode(*s, *d))
            .collect();
        let want = golden.numbers(&format!("coder{i}.offsets"))?;
        assert_close("offsets", offsets.as_flattened(), &want, 2e-5);
        let decode = |offsets: &[BBox]| -> Vec<BBox> {
            offsets
                .iter()
                .zip(&src)
                .map(|(o, s)| coder.decode(*o, *s))
                .collect()
        };
        let want = golden.numbers(&format!("coder{i}.boxes"))?;
        let decoded = decode(&offsets);
        assert_close("boxes", decoded.as_flattened(), &want, 1e-3);
        assert_close(
            "round trip",
            decoded.as_flattened(),
            dst.as_flattened(),
            1e-3,
        );
        // Most of these are clamped.
        let wild: Vec<f32> = fill(7, 160).iter().map(|x| x * 30.0).collect();
        let (wild, _) = wild.as_chunks::<4>();
        let want = golden.numbers(&format!("coder{i}.wild"))?;
        assert_close("wild", decode(wild).as_flattened(), &want, 1e-2);
    }
    Ok(())
}

#[test]
fn anchors_are_detectron2s() -> Result<()> {
    let golden = Golden::load()?;
    let c4 = AnchorConfig::default();
    assert_eq!(c4.per_cell(), 15);
    assert_eq!(c4.anchors((3, 4)), golden.boxes("anchors.c4")?);
    let odd = AnchorConfig {
        sizes: vec![24.5],
        aspect_ratios: vec![0.3, 1.7],
        stride: 7,
    };
    // 0.3 and 1.7 are other numbers in single precision.
    let got = odd.anchors((2, 5));
    assert_close(
        "odd",
        got.as_flattened(),
        &golden.numbers("anchors.odd")?,
        1e-5,
    );
    assert!(c4.anchors((0, 4)).is_empty());
    Ok(())
}

#[test]
fn matches_are_torchvisions() -> Result<()> {
    let golden = Golden::load()?;
    let mut objects = boxes(8, 9, 50.0, 40.0);
    objects.push(objects[4]);
    let anchors = AnchorConfig::default().anchors((9, 10));
    let overlaps = pairwise_iou(&objects, &anchors);
    for (name, negative_below, positive_from, allow_low_quality) in
        [("rpn", 0.3, 0.7, true), ("head", 0.5, 0.5, false)]
    {
        let matcher = Matcher {
            negative_below,
            positive_from,
            allow_low_quality,
        };
        let matches = matcher.matches(&overlaps);
        assert_eq!(
            matches.objects,
            golden.indices(&format!("match.{name}.objects"))?
        );
        let labels: Vec<usize> = matches
            .labels
            .iter()
            .map(|label| match label {
                MatchLabel::Negative => 0,
                MatchLabel::Positive => 1,
                MatchLabel::Ignored => 2,
            })
            .collect();
        assert_eq!(
            labels,
            golden.indices(&format!("match.{name}.labels"))?,
            "{name}"
        );
        // Both kinds, and for the proposal network the third, or the fixture shows little.
        let kinds = if name == "rpn" { 3 } else { 2 };
        assert!((0..kinds).all(|kind| labels.contains(&kind)));
    }
    Ok(())
}

#[test]
fn proposals_are_detectron2s() -> Result<()> {
    let golden = Golden::load()?;
    let levels: Vec<_> = [(16, (10, 13)), (32, (5, 7))]
        .into_iter()
        .zip(0u32..)
        .map(|((stride, map), level)| {
            let config = AnchorConfig {
                sizes: vec![32.0, 64.0, 128.0],
                stride,
                ..Default::default()
            };
            let anchors = config.anchors(map);
            let logits: Vec<f32> = fill(10 + level, anchors.len())
                .iter()
                .map(|x| x * 4.0)
                .collect();
            let mut offsets = fill(20 + level, 4 * anchors.len());
            let (rows, _) = offsets.as_chunks_mut::<4>();
            rows.iter_mut()
                .step_by(37)
                .for_each(|row| *row = row.map(|x| x - 6.0));
            let offsets = rows.to_vec();
            (anchors, logits, offsets)
        })
        .collect();
    let levels: Vec<RpnLevel<'_>> = levels
        .iter()
        .map(|(anchors, logits, offsets)| RpnLevel {
            anchors,
            logits,
            offsets,
        })
        .collect();
    let coder = BoxCoder { weights: [1.0; 4] };
    let everything = 1_000_000;
    for (i, (pre_nms_topk, post_nms_topk, nms_threshold, min_box_size, count)) in [
        (400, 100, 0.7, 0.0, 1),
        (everything, 50, 0.5, 0.0, 1),
        (200, everything, 0.7, 4.0, 2),
        (300, 60, 0.7, 0.0, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let config = ProposalConfig {
            pre_nms_topk,
            post_nms_topk,
            nms_threshold,
            min_box_size,
        };
        let found = select_proposals(&levels[..count], &coder, (150, 205), &config, &CPU)?;
        assert_eq!(found.not_finite, 0);
        assert_eq!(
            found.logits,
            golden.numbers(&format!("proposals{i}.logits"))?,
            "{i}"
        );
        let want = golden.numbers(&format!("proposals{i}.boxes"))?;
        assert_close("boxes", found.boxes.as_flattened(), &want, 1e-3);
    }
    Ok(())
}

#[test]
fn proposals_that_are_not_numbers_are_counted_and_left_out() -> Result<()> {
    let anchors = [
        [0.0, 0.0, 10.0, 10.0],
        [20.0, 0.0, 30.0, 10.0],
        [0.0, 20.0, 10.0, 30.0],
    ];
    let coder = BoxCoder { weights: [1.0; 4] };
    let config = ProposalConfig {
        pre_nms_topk: 3,
        post_nms_topk: 3,
        nms_threshold: 0.7,
        min_box_size: 0.0,
    };
    let mut offsets = [[0.0; 4]; 3];
    offsets[1][2] = f32::NAN;
    let level = RpnLevel {
        anchors: &anchors,
        logits: &[1.0, 2.0, f32::NAN],
        offsets: &offsets,
    };
    let found = select_proposals(&[level], &coder, (40, 40), &config, &CPU)?;
    assert_eq!((found.boxes, found.not_finite), (vec![anchors[0]], 2));
    assert_eq!(
        select_proposals(&[], &coder, (40, 40), &config, &CPU)?
            .boxes
            .len(),
        0
    );
    Ok(())
}

#[test]
fn nms_equals_its_definition_at_every_size_around_a_block() {
    for count in [1, 2, 63, 64, 65, 128, 129, 700] {
        let (boxes, scores) = (boxes(11, count, 50.0, 20.0), fill(12, count));
        for threshold in [0.0, 0.25, 0.5, 0.99, 1.0] {
            let want = nms_reference(&boxes, &scores, threshold);
            assert_eq!(
                nms(&boxes, &scores, threshold),
                want,
                "{count}, {threshold}"
            );
        }
    }
}
