//! The CUDA kernels, run on a CPU, against the plain references.
#![cfg(all(target_os = "linux", target_env = "gnu"))] // what the shim needs

use std::ffi::c_void;

use benches::{Buffer, Kernels, Stored, fill};
use candle_core::{Device, Result, Tensor, Var};
use half::{bf16, f16};
use pirl_eval::detect::{BBox, Roi, RoiAlignConfig, batched_nms, roi_align_reference};

type Forward = unsafe extern "C" fn(
    *mut c_void,
    *mut i32,
    *mut f32,
    i32,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
    i32,
    i32,
    *mut c_void,
);
type Backward = unsafe extern "C" fn(
    *mut c_void,
    *mut i32,
    *mut f32,
    i32,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
    i32,
    i32,
    *mut f32,
);

fn channels_last(x: &Tensor) -> Result<Vec<f32>> {
    x.permute((0, 2, 3, 1))?
        .contiguous()?
        .flatten_all()?
        .to_vec1()
}

/// Largest difference as a part of the largest magnitude.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, x| m.max(x.abs()));
    let scale = largest(&mut want.iter().copied()).max(1e-3);
    largest(
        &mut got
            .iter()
            .zip(want)
            .map(|(g, w)| if g.is_nan() { f32::MAX } else { g - w }),
    ) / scale
}

/// Regions inside, across each border, empty, inverted, far out, and larger than the map.
fn regions(width: f32, height: f32) -> Vec<Roi> {
    let roi = |image, x0, y0, x1, y1| Roi {
        image,
        bbox: [x0 * width, y0 * height, x1 * width, y1 * height],
    };
    vec![
        roi(0, 0.1, 0.2, 0.7, 0.9),
        roi(1, -0.3, -0.2, 0.4, 1.3),
        roi(0, 0.0, 0.0, 1.0, 1.0),
        roi(1, 0.5, 0.5, 0.5, 0.5),
        roi(0, 0.8, 0.7, 0.3, 0.2),
        roi(1, 3.0, 3.0, 4.0, 4.0),
        roi(1, -900.0, -700.0, 800.0, 900.0),
        roi(0, 0.33, 0.1, 0.35, 0.13),
    ]
}

fn equals_the_reference<T: Stored>() -> Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/detect/roi_align.cu");
    let kernels = Kernels::compile::<T>(source);
    let forward = kernels.get::<Forward>("roi_align_forward");
    let backward = kernels.get::<Backward>("roi_align_backward");
    for ((c, h, w), output_size, cells, sampling_ratio, aligned) in [
        ((3, 13, 17), (7, 7), 16.0, 0, true),
        ((2, 13, 17), (3, 5), 16.0, 2, true),
        ((2, 13, 17), (4, 2), 16.0, 0, false),
        ((1, 5, 3), (2, 3), 4.0, 3, false),
        ((5, 1, 1), (2, 2), 16.0, 0, true),
        ((17, 4, 6), (1, 1), 48.0, 0, true),
    ] {
        let config = RoiAlignConfig {
            output_size,
            spatial_scale: 1.0 / cells,
            sampling_ratio,
            aligned,
        };
        let what = format!("{c} maps of {h}x{w}, {config:?}");
        let rois = regions(w as f32 * cells as f32, h as f32 * cells as f32);
        let (rows, columns) = output_size;
        let (in_len, out_len) = (2 * c * h * w, rois.len() * rows * columns * c);
        let values = T::round(&fill(1, in_len));
        let d_out = T::round(&fill(2, out_len));

        let nchw = |values: Vec<f32>, shape| -> Result<Tensor> {
            Tensor::from_vec(values, shape, &Device::Cpu)?
                .permute((0, 3, 1, 2))?
                .contiguous()
        };
        let features = Var::from_tensor(&nchw(values.clone(), (2, h, w, c))?)?;
        let plain = roi_align_reference(&features, &rois, &config)?;
        let loss = (&plain * nchw(d_out.clone(), (rois.len(), rows, columns, c))?)?.sum_all()?;
        let gradient = loss.backward()?.get(&features).expect("a gradient").clone();

        let (x, dy) = (Buffer::<T>::rounded(&values), Buffer::<T>::rounded(&d_out));
        let images = Buffer::new(&rois.iter().map(|roi| roi.image as i32).collect::<Vec<_>>());
        let boxes = Buffer::new(&rois.iter().flat_map(|roi| roi.bbox).collect::<Vec<f32>>());
        let (out, dx) = (
            Buffer::<T>::unset(out_len),
            Buffer::new(&vec![0f32; in_len]),
        );
        let [count, c, h, w, rows, columns, ratio] =
            [rois.len(), c, h, w, rows, columns, sampling_ratio].map(|size| size as i32);
        let (scale, aligned) = (config.spatial_scale as f32, aligned.into());
        // SAFETY: the buffers have the sizes that the kernel is told, and the images exist.
        kernels.launch((2, 1, 1), (96, 1, 1), || unsafe {
            forward(
                x.pointer(),
                images.pointer(),
                boxes.pointer(),
                count,
                c,
                h,
                w,
                rows,
                columns,
                scale,
                ratio,
                aligned,
                out.pointer(),
            );
        });
        // SAFETY: as above.
        kernels.launch((3, 1, 1), (64, 1, 1), || unsafe {
            backward(
                dy.pointer(),
                images.pointer(),
                boxes.pointer(),
                count,
                c,
                h,
                w,
                rows,
                columns,
                scale,
                ratio,
                aligned,
                dx.pointer(),
            );
        });
        let off = error(&out.widened(), &channels_last(&plain)?);
        println!("{what}: output off by {off:.1e}");
        assert!(off < 1e-5 + T::ROUNDING, "{what}: output off by {off}");
        let off = error(&dx.values(), &channels_last(&gradient)?);
        println!("{what}: gradient off by {off:.1e}");
        assert!(off < 1e-5, "{what}: gradient off by {off}");
    }
    Ok(())
}

#[test]
fn roi_align_equals_the_reference() -> Result<()> {
    equals_the_reference::<f32>()?;
    equals_the_reference::<bf16>()?;
    equals_the_reference::<f16>()
}

/// `count` boxes by falling score, some of them twice, empty or inverted, of `classes` classes.
fn boxes_by_score(count: usize, classes: usize) -> (Vec<BBox>, Vec<usize>) {
    let numbers = fill(4, 4 * count);
    let one = |(i, t): (usize, &[f32])| match i % 13 {
        11 => [3.0, 4.0, 3.0, 9.0],
        12 => [9.0, 9.0, 2.0, 2.0],
        _ => {
            let (x, y) = ((t[0] + 1.0) * 20.0, (t[1] + 1.0) * 20.0);
            [x, y, x + (t[2] + 1.0) * 12.0, y + (t[3] + 1.0) * 12.0]
        }
    };
    let mut boxes: Vec<BBox> = numbers.chunks_exact(4).enumerate().map(one).collect();
    for i in (10..count).step_by(10) {
        boxes[i] = boxes[i - 7];
    }
    let class = |x: &f32| ((x + 1.0) / 2.0 * classes as f32) as usize % classes;
    (boxes, fill(5, count).iter().map(class).collect())
}

#[test]
fn nms_keeps_what_it_keeps_on_a_cpu() {
    type Overlaps = unsafe extern "C" fn(*mut f32, *mut i32, i32, f32, *mut u64);
    type Keep = unsafe extern "C" fn(*mut u64, i32, i32, *mut i32);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/detect/nms.cu");
    let kernels = Kernels::compile::<f32>(source);
    let overlaps = kernels.get::<Overlaps>("nms_overlaps");
    let keep = kernels.get::<Keep>("nms_keep");
    for (count, classes, threshold, most) in [
        (1, 1, 0.5f32, 5),
        (63, 1, 0.3, 1000),
        (64, 2, 0.7, 1000),
        (65, 1, 0.0, 1000),
        (700, 3, 0.5, 1000),
        (700, 1, 0.5, 20),
    ] {
        let (boxes, classes) = boxes_by_score(count, classes);
        let scores: Vec<f32> = (0..count).map(|i| -(i as f32)).collect();
        let mut want = batched_nms(&boxes, &scores, &classes, threshold.into());
        want.truncate(most);
        for falling in [false, true] {
            kernels.set_falling(falling);
            let words = count.div_ceil(64);
            let device_boxes = Buffer::new(boxes.as_flattened());
            let device_classes =
                Buffer::new(&classes.iter().map(|&c| c as i32).collect::<Vec<_>>());
            let (bits, kept) = (
                Buffer::<u64>::unset(count * words),
                Buffer::<i32>::unset(1 + most),
            );
            let grid = (words as u32, words as u32, 1);
            // SAFETY: `count` boxes and classes, and as many rows of words.
            kernels.launch(grid, (64, 1, 1), || unsafe {
                let (boxes, classes) = (device_boxes.pointer(), device_classes.pointer());
                overlaps(boxes, classes, count as i32, threshold, bits.pointer());
            });
            // SAFETY: the rows just written, and room for `most` numbers and how many they are.
            kernels.launch((1, 1, 1), (256, 1, 1), || unsafe {
                keep(bits.pointer(), count as i32, most as i32, kept.pointer());
            });
            let kept = kept.values();
            let got: Vec<usize> = kept[1..=kept[0] as usize]
                .iter()
                .map(|&i| i as usize)
                .collect();
            assert_eq!(got, want, "{count} boxes at {threshold}, up to {most}");
        }
    }
}
