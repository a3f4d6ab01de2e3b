//! The curves of a chart.

/// A curve of a [`Chart`](crate::Chart).
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Half the length of the bar at each point; none without bars.
    deviations: Vec<f64>,
    pub(crate) filled: bool,
}

impl Series {
    /// The curve through `points` in their order, each at the right and up; what is infinite or not a number
    /// is left out.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        // A coordinate that an `f32` cannot hold is taken for infinite, so that no range overflows.
        let finite = |x: f64| (x as f32).is_finite();
        let points = points.into_iter().filter(|(x, y)| finite(*x) && finite(*y));
        Self {
            name: name.into(),
            points: points.collect(),
            deviations: Vec::new(),
            filled: false,
        }
    }

    /// The curve through points with a bar of a deviation up and down, each at the right, up, and the
    /// deviation; 0 for none. What is not finite is left out.
    pub fn with_deviations(
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64, f64)>,
    ) -> Self {
        let mut series = Self::new(name, []);
        for (x, y, deviation) in points {
            if [x, y, deviation]
                .iter()
                .all(|value| (*value as f32).is_finite())
            {
                series.points.push((x, y));
                series.deviations.push(deviation.abs());
            }
        }
        series
    }

    /// The lower and upper ends of the bars.
    pub(crate) fn bars(&self) -> impl Iterator<Item = [(f64, f64); 2]> {
        let bars = self.points.iter().zip(&self.deviations);
        bars.map(|(&(x, y), deviation)| [(x, y - deviation), (x, y + deviation)])
    }

    /// The same, with a light ground between the curve and the lower end of the axis.
    #[must_use]
    pub fn filled(self) -> Self {
        Self {
            filled: true,
            ..self
        }
    }

    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// Of the points in each of `columns` of the axis, the first, the lowest, the highest and the last: what can
/// be seen of a long curve.
pub(crate) fn thinned(
    points: &[(f64, f64)],
    [low, high]: [f64; 2],
    columns: usize,
) -> Vec<(f64, f64)> {
    if points.len() <= 4 * columns.max(1) {
        return points.to_vec();
    }
    let column = |x: f64| ((x - low) / (high - low) * columns as f64) as usize;
    let mut kept = Vec::new();
    for part in points.chunk_by(|a, b| column(a.0) == column(b.0)) {
        let by_height = |a: &&usize, b: &&usize| part[**a].1.total_cmp(&part[**b].1);
        let places: Vec<usize> = (0..part.len()).collect();
        let ends = [0, part.len() - 1].into_iter();
        let extremes = [
            places.iter().min_by(by_height),
            places.iter().max_by(by_height),
        ];
        let mut places: Vec<usize> = ends
            .chain(extremes.into_iter().flatten().copied())
            .collect();
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|place| part[place]));
    }
    kept
}
