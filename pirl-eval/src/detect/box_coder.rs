//! Boxes as offsets from other boxes, which is what the network regresses.

use super::boxes::BBox;

/// Largest `dw` and `dh` that are decoded: a box grows 62.5-fold at most (detectron2's
/// `_DEFAULT_SCALE_CLAMP`), so that a wild prediction does not overflow.
const MAX_LOG_SCALE: f32 = 4.135_166_6; // ln(1000 / 16)

/// The offsets `dx, dy, dw, dh` of a box from a reference box (an anchor or a proposal): shifts of
/// the centre in units of the reference's sides, and logarithms of the ratios of the sides
/// (Girshick et al., arXiv:1311.2524, appendix C), each times its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxCoder {
    /// Weights of `dx, dy, dw, dh`, positive; detectron2 has 1, 1, 1, 1 for the proposal network and
    /// 10, 10, 5, 5 for the box head.
    pub weights: [f32; 4],
}

impl BoxCoder {
    /// The offsets that lead from `reference` to `target`.
    ///
    /// Finite if both boxes have an area. Pairs made by [`Matcher`](super::Matcher) with a positive
    /// label do: they overlap.
    pub fn encode(&self, reference: BBox, target: BBox) -> [f32; 4] {
        let ((x, y), (w, h)) = centre_and_sides(reference);
        let ((target_x, target_y), (target_w, target_h)) = centre_and_sides(target);
        let [wx, wy, ww, wh] = self.weights;
        [
            wx * (target_x - x) / w,
            wy * (target_y - y) / h,
            ww * (target_w / w).ln(),
            wh * (target_h / h).ln(),
        ]
    }

    /// The box at `offsets` from `reference`, not clipped; not finite if an offset is not.
    pub fn decode(&self, offsets: [f32; 4], reference: BBox) -> BBox {
        let ((x, y), (w, h)) = centre_and_sides(reference);
        let [wx, wy, ww, wh] = self.weights;
        let [dx, dy, dw, dh] = offsets;
        let scale = |d: f32| {
            // Not `min`, which would make a number of NaN.
            let d = if d > MAX_LOG_SCALE { MAX_LOG_SCALE } else { d };
            d.exp()
        };
        let (x, y) = (dx / wx * w + x, dy / wy * h + y);
        let (w, h) = (scale(dw / ww) * w, scale(dh / wh) * h);
        [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]
    }
}

fn centre_and_sides([x0, y0, x1, y1]: BBox) -> ((f32, f32), (f32, f32)) {
    let (w, h) = (x1 - x0, y1 - y0);
    ((x0 + 0.5 * w, y0 + 0.5 * h), (w, h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clamp_is_detectron2s() {
        assert_eq!(MAX_LOG_SCALE, (1000f64 / 16.0).ln() as f32);
        let coder = BoxCoder { weights: [1.0; 4] };
        let unit = [0.0, 0.0, 1.0, 1.0];
        let [x0, _, x1, _] = coder.decode([0.0, 0.0, 1e30, 0.0], unit);
        assert!((x1 - x0 - 62.5).abs() < 1e-4);
        assert!(coder.decode([0.0, 0.0, f32::NAN, 0.0], unit)[0].is_nan());
    }
}
