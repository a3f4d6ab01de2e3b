//! Points of a plane in a tree of squares, so that those far away count as one.

/// Squares in squares at most: points that differ by less are taken for one.
const DEEPEST: usize = 40;
/// A little more than their diagonal, in sides of the first square.
const SMALLEST: f64 = 2.0 / (1u64 << DEEPEST) as f64;
const NONE: u32 = u32::MAX;

/// A square, with what lies in it.
struct Square {
    /// Mean of its points.
    centre: [f64; 2],
    points: f64,
    /// Quarters, or [`NONE`].
    quarters: [u32; 4],
}

/// The tree of some points.
pub(super) struct Quadtree {
    squares: Vec<Square>,
    /// Side of the first square, in which all others are.
    side: f64,
}

impl Quadtree {
    pub(super) fn new(points: &[[f64; 2]]) -> Self {
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for point in points {
            for axis in 0..2 {
                low[axis] = low[axis].min(point[axis]);
                high[axis] = high[axis].max(point[axis]);
            }
        }
        let side = (high[0] - low[0])
            .max(high[1] - low[1])
            .max(f64::MIN_POSITIVE);
        let mut tree = Self {
            squares: Vec::with_capacity(2 * points.len()),
            side,
        };
        for point in points {
            tree.insert(*point, low);
        }
        tree
    }

    fn insert(&mut self, point: [f64; 2], corner: [f64; 2]) {
        let (mut corner, mut side) = (corner, self.side);
        if self.squares.is_empty() {
            self.squares.push(Square::of(point));
            return;
        }
        let mut at = 0;
        for depth in 0.. {
            let square = &mut self.squares[at];
            let leaf = square.quarters == [NONE; 4];
            let before = square.centre;
            let count = square.points;
            square.add(point);
            if leaf && (before == point || depth == DEEPEST) {
                return;
            }
            side *= 0.5;
            if leaf {
                // What was alone here moves into a quarter, and the new one follows.
                let (quarter, _) = quarter_of(before, corner, side);
                let child = self.squares.len() as u32;
                let mut moved = Square::of(before);
                moved.points = count;
                self.squares.push(moved);
                self.squares[at].quarters[quarter] = child;
            }
            let (quarter, next) = quarter_of(point, corner, side);
            match self.squares[at].quarters[quarter] {
                NONE => {
                    let child = self.squares.len() as u32;
                    self.squares.push(Square::of(point));
                    self.squares[at].quarters[quarter] = child;
                    return;
                }
                child => (at, corner) = (child as usize, next),
            }
        }
    }

    /// The sums over all other points of `q` and of `q^2` times the way from them to `point`, where `q` is
    /// 1 / (1 + squared distance); a square counts as its centre where its side is below `theta` times its
    /// distance. `stack` is scratch.
    pub(super) fn repulsion(
        &self,
        point: [f64; 2],
        theta: f64,
        stack: &mut Vec<(u32, f64)>,
    ) -> (f64, [f64; 2]) {
        let (mut sum, mut force) = (0.0, [0.0; 2]);
        let here = (self.side * SMALLEST).powi(2);
        stack.clear();
        stack.push((0, self.side));
        while let Some((at, side)) = stack.pop() {
            let square = &self.squares[at as usize];
            let way = [point[0] - square.centre[0], point[1] - square.centre[1]];
            let squared = way[0] * way[0] + way[1] * way[1];
            let leaf = square.quarters == [NONE; 4];
            if leaf || side * side < theta * theta * squared {
                // A leaf where the point is holds the point.
                let own = if leaf && squared <= here { 1.0 } else { 0.0 };
                let q = 1.0 / (1.0 + squared);
                let weight = (square.points - own) * q;
                sum += weight;
                force[0] += weight * q * way[0];
                force[1] += weight * q * way[1];
                continue;
            }
            let quarters = square.quarters.iter().filter(|quarter| **quarter != NONE);
            stack.extend(quarters.map(|quarter| (*quarter, 0.5 * side)));
        }
        (sum, force)
    }
}

impl Square {
    fn of(point: [f64; 2]) -> Self {
        Self {
            centre: point,
            points: 1.0,
            quarters: [NONE; 4],
        }
    }

    fn add(&mut self, point: [f64; 2]) {
        self.points += 1.0;
        for (centre, x) in self.centre.iter_mut().zip(point) {
            *centre += (x - *centre) / self.points;
        }
    }
}

/// Which quarter of side `side` of the square at `corner` a point is in, and that quarter's corner.
fn quarter_of(point: [f64; 2], corner: [f64; 2], side: f64) -> (usize, [f64; 2]) {
    let far = [0, 1].map(|axis| point[axis] >= corner[axis] + side);
    let next = [0, 1].map(|axis| corner[axis] + if far[axis] { side } else { 0.0 });
    (usize::from(far[0]) + 2 * usize::from(far[1]), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(points: &[[f64; 2]], own: usize) -> (f64, [f64; 2]) {
        let (mut sum, mut force) = (0.0, [0.0; 2]);
        for (other, at) in points.iter().enumerate() {
            let way = [points[own][0] - at[0], points[own][1] - at[1]];
            let q = 1.0 / (1.0 + way[0] * way[0] + way[1] * way[1]);
            if other != own {
                sum += q;
                force = [force[0] + q * q * way[0], force[1] + q * q * way[1]];
            }
        }
        (sum, force)
    }

    #[test]
    fn a_tree_is_exact_without_theta_and_near_with_it() {
        let noise = benches::fill(3, 600);
        let mut points: Vec<[f64; 2]> = noise
            .chunks_exact(2)
            .map(|pair| [20.0 * f64::from(pair[0]), 20.0 * f64::from(pair[1])])
            .collect();
        points.extend([points[0], points[0], points[7]]); // equal ones
        let tree = Quadtree::new(&points);
        let mut stack = Vec::new();
        for own in 0..points.len() {
            let (sum, force) = exact(&points, own);
            let (found, pushed) = tree.repulsion(points[own], 0.0, &mut stack);
            assert!((found - sum).abs() < 1e-9 * sum, "{found}, {sum}");
            let norm = force[0].hypot(force[1]).max(1e-6);
            assert!((pushed[0] - force[0]).abs() < 1e-9 + 1e-9 * norm);
            let (found, _) = tree.repulsion(points[own], 0.5, &mut stack);
            assert!((found - sum).abs() < 0.05 * sum, "{found}, {sum}");
        }
    }

    #[test]
    fn points_that_hardly_differ_do_not_sink_for_ever() {
        let points = [[0.0, 0.0], [1e-300, 0.0], [1.0, 1.0], [1.0, 1.0]];
        let tree = Quadtree::new(&points);
        let (sum, _) = tree.repulsion(points[0], 0.0, &mut Vec::new());
        assert!((sum - 5.0 / 3.0).abs() < 1e-9, "{sum}");
        let same = Quadtree::new(&[[2.0, 2.0]; 5]);
        assert_eq!(
            same.repulsion([2.0, 2.0], 0.5, &mut Vec::new()),
            (4.0, [0.0; 2])
        );
    }
}
