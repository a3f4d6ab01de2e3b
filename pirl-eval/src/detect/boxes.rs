//! Boxes and their overlaps.

use rayon::prelude::*;

/// A box: `xmin, ymin, xmax, ymax` in pixels; it covers `xmax - xmin` columns.
pub type BBox = [f32; 4];

/// The area of a box in square pixels; 0 if a side is not positive.
pub fn area([x0, y0, x1, y1]: BBox) -> f32 {
    (x1 - x0).max(0.0) * (y1 - y0).max(0.0)
}

/// Intersection over union, in `[0, 1]`; 0 for boxes that do not overlap or have no area.
///
/// Computed in the order of detectron2's `pairwise_iou`, so that ties between anchors are its ties.
pub fn iou(a: BBox, b: BBox) -> f32 {
    let (area_a, area_b) = (area(a), area(b));
    let common = area([
        a[0].max(b[0]),
        a[1].max(b[1]),
        a[2].min(b[2]),
        a[3].min(b[3]),
    ]);
    if common > 0.0 && area_a > 0.0 && area_b > 0.0 {
        common / (area_a + area_b - common)
    } else {
        0.0
    }
}

/// The box inside an image of `(height, width)`; one wholly outside loses its area.
pub fn clip([x0, y0, x1, y1]: BBox, (height, width): (usize, usize)) -> BBox {
    let (w, h) = (width as f32, height as f32);
    [
        x0.clamp(0.0, w),
        y0.clamp(0.0, h),
        x1.clamp(0.0, w),
        y1.clamp(0.0, h),
    ]
}

/// Whether both sides exceed `size` pixels; with a `size` of 0, whether the box has an area.
pub fn is_larger_than([x0, y0, x1, y1]: BBox, size: f32) -> bool {
    x1 - x0 > size && y1 - y0 > size
}

/// The [`iou`] of every box of one list with every box of another.
#[derive(Clone, Debug, PartialEq)]
pub struct IouMatrix {
    columns: usize,
    values: Vec<f32>,
}

impl IouMatrix {
    /// One slice for each box of the first list, with an entry for each of the second.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.columns.max(1))
    }

    /// Boxes in the second list.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// The [`iou`] of every box of `a` (the rows) with every box of `b` (the columns).
pub fn pairwise_iou(a: &[BBox], b: &[BBox]) -> IouMatrix {
    let columns = b.len();
    let mut values = vec![0f32; a.len() * columns];
    if columns > 0 {
        values.par_chunks_mut(columns).zip(a).for_each(|(row, &a)| {
            row.iter_mut()
                .zip(b)
                .for_each(|(value, &b)| *value = iou(a, b));
        });
    }
    IouMatrix { columns, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_of_touching_empty_and_inverted_boxes_are_zero() {
        let a = [0.0, 0.0, 4.0, 2.0];
        assert_eq!(iou(a, a), 1.0);
        assert_eq!(iou(a, [2.0, 0.0, 6.0, 2.0]), 4.0 / 12.0);
        for other in [
            [4.0, 0.0, 8.0, 2.0],
            [1.0, 1.0, 1.0, 2.0],
            [3.0, 1.0, 1.0, 2.0],
            [0.0; 4],
            [f32::NAN; 4],
        ] {
            assert_eq!(iou(a, other), 0.0, "{other:?}");
            assert_eq!(iou(other, other), f32::from(u8::from(area(other) > 0.0)));
        }
    }

    #[test]
    fn a_box_outside_the_image_is_clipped_to_nothing() {
        assert_eq!(clip([-5.0, 2.0, 30.0, 9.0], (8, 20)), [0.0, 2.0, 20.0, 8.0]);
        let outside = clip([25.0, 1.0, 30.0, 5.0], (8, 20));
        assert!(!is_larger_than(outside, 0.0));
        assert!(is_larger_than([0.0, 0.0, 2.0, 1.5], 1.0));
        assert!(!is_larger_than([0.0, 0.0, 2.0, 1.0], 1.0));
    }

    #[test]
    fn a_matrix_without_rows_or_columns_is_empty() {
        let boxes = [[0.0, 0.0, 1.0, 1.0]; 3];
        assert_eq!(pairwise_iou(&[], &boxes).rows().len(), 0);
        assert_eq!(pairwise_iou(&[], &boxes).columns(), 3);
        assert_eq!(pairwise_iou(&boxes, &[]).columns(), 0);
        assert_eq!(pairwise_iou(&boxes, &boxes[..2]).rows().len(), 3);
    }
}
