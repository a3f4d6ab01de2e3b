//! Round numbers along an axis, and how they are written.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// The labelled values of an axis, and its ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ticks {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) values: Vec<f64>,
    /// Distance of the values.
    step: f64,
    /// What stands at the values, instead of numbers.
    names: Vec<String>,
}

impl Ticks {
    /// About `count` round numbers between the ends of `range`; whole ones if asked for.
    pub(crate) fn within(range: [f64; 2], count: usize, whole: bool) -> Self {
        let [low, high] = apart(range);
        let step = round_step((high - low) / count.max(1) as f64);
        let step = if whole { step.max(1.0) } else { step };
        // A value at the very end may come out a rounding error beyond it.
        let slack = 1e-9 * step;
        let (first, last) = (
            ((low - slack) / step).ceil() as i64,
            ((high + slack) / step).floor() as i64,
        );
        let values = (first..=last).map(|place| (place as f64 * step).clamp(low, high));
        Self {
            low,
            high,
            values: values.collect(),
            step,
            names: Vec::new(),
        }
    }

    /// `names` at 0, 1, 2, ...
    pub(crate) fn named(names: &[String]) -> Self {
        let values = (0..names.len()).map(|place| place as f64);
        Self {
            low: -0.4,
            high: names.len() as f64 - 0.6,
            values: values.collect(),
            step: 1.0,
            names: names.to_vec(),
        }
    }

    /// The same, with the ends moved out to round numbers; to 0 where that is near.
    pub(crate) fn around(range: [f64; 2], count: usize) -> Self {
        let [mut low, high] = apart(range);
        if low > 0.0 && low < 0.4 * high {
            low = 0.0;
        }
        let step = round_step((high - low) / count.max(1) as f64);
        let slack = 1e-9;
        let low = (low / step + slack).floor() * step;
        let high = (high / step - slack).ceil() * step;
        Self::of_step([low, high], step)
    }

    fn of_step([low, high]: [f64; 2], step: f64) -> Self {
        let (first, last) = ((low / step).round() as i64, (high / step).round() as i64);
        Self {
            low,
            high,
            values: (first..=last).map(|place| place as f64 * step).collect(),
            step,
            names: Vec::new(),
        }
    }

    /// How a value is written: with the decimals that tell it from its neighbours.
    pub(crate) fn label(&self, value: f64) -> String {
        if let Some(name) = self.names.get(value.round() as usize) {
            return name.clone();
        }
        let value = if value.abs() < 1e-6 * self.step {
            0.0
        } else {
            value
        };
        let largest = self.low.abs().max(self.high.abs());
        let decimals = |step: f64| (-(step * 1.000_001).log10().floor()).max(0.0) as usize;
        if !(1e-3..1e12).contains(&largest) {
            if value == 0.0 {
                return "0".to_owned();
            }
            let digits = value.abs().log10().floor() - (self.step * 1.000_001).log10().floor();
            return format!("{value:.*e}", digits.max(0.0) as usize);
        }
        for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
            // Up to 9,999 numbers are written whole.
            if largest >= 10.0 * unit || (largest >= unit && unit > 1e3) {
                if value == 0.0 {
                    return "0".to_owned();
                }
                return format!("{:.*}{name}", decimals(self.step / unit), value / unit);
            }
        }
        format!("{value:.*}", decimals(self.step))
    }

    /// The values as they are written.
    pub(crate) fn labels(&self) -> Vec<String> {
        self.values.iter().map(|value| self.label(*value)).collect()
    }
}

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.values.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The least and the greatest of `values`; `None` where there is none.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let ends = values.map(|value| [value, value]);
    ends.reduce(|[low, high], [value, _]| [low.min(value), high.max(value)])
}

/// The ends in order and a little apart, as what cannot be told apart cannot be drawn.
fn apart([low, high]: [f64; 2]) -> [f64; 2] {
    let (low, high) = (low.min(high), low.max(high));
    let least = 1e-6 * low.abs().max(high.abs());
    if high - low > least.max(f64::MIN_POSITIVE * 1e20) {
        return [low, high];
    }
    let middle = low + (high - low) / 2.0;
    let half = if middle == 0.0 {
        0.5
    } else {
        0.1 * middle.abs()
    };
    [middle - half, middle + half]
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter();
    let mut steps = factor.map(|factor| factor * power);
    steps
        .find(|found| *found >= 0.999_999 * step)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_round_and_tell_neighbours_apart() {
        for (range, count, labels) in [
            ([0.0, 1.0], 5, "0.0 0.2 0.4 0.6 0.8 1.0"),
            ([1.0, 1173.0], 4, "500 1000"),
            ([1.0, 93_600.0], 5, "20k 40k 60k 80k"),
            ([0.0, 2.5e6], 5, "0 0.5M 1.0M 1.5M 2.0M 2.5M"),
            ([-0.3, 0.3], 3, "-0.2 0.0 0.2"),
            ([0.0, 0.000_05], 3, "0 2e-5 4e-5"),
            ([0.98, 1.0], 2, "0.98 0.99 1.00"),
        ] {
            let found = Ticks::within(range, count, false).labels().join(" ");
            assert_eq!(found, labels, "{range:?}");
        }
        for (range, labels) in [
            ([1.0, 3.0], "1 2 3"),
            ([7.0, 7.0], "7"),
            ([0.0, 50.0], "0 20 40"),
        ] {
            assert_eq!(Ticks::within(range, 4, true).labels().join(" "), labels);
        }
    }

    #[test]
    fn axes_around_values_end_in_round_numbers() {
        for (range, low, high) in [
            ([0.3, 4.7], 0.0, 5.0),
            ([3.1, 4.2], 3.0, 4.2),
            ([-2.0, 0.0], -2.0, 0.0),
            ([0.0, 0.03], 0.0, 0.03),
            ([5.0, 5.0], 4.4, 5.6),
        ] {
            let ticks = Ticks::around(range, 6);
            assert!((ticks.low - low).abs() < 1e-9, "{range:?}: {ticks:?}");
            assert!((ticks.high - high).abs() < 1e-9, "{range:?}: {ticks:?}");
            assert_eq!(ticks.values.first(), Some(&ticks.low));
        }
    }

    #[test]
    fn any_range_has_a_few_values_inside_it() {
        let big = f64::from(f32::MAX);
        let mut ends = vec![0.0, 1e-300, 1e-45, 1e-9, 0.1, 1.0, 3.7, 1e5, 1e15, big];
        ends.extend(ends.clone().iter().map(|end| -end));
        ends.extend([1.0 + 1e-15, 1e5 + 1e-9]);
        for low in &ends {
            for high in &ends {
                for ticks in [
                    Ticks::within([*low, *high], 5, false),
                    Ticks::around([*low, *high], 5),
                ] {
                    let count = ticks.values.len();
                    assert!((1..=12).contains(&count), "{low} {high}: {ticks:?}");
                    assert!(ticks.low < ticks.high, "{low} {high}: {ticks:?}");
                    let range = ticks.low - 1e-6 * ticks.step..=ticks.high + 1e-6 * ticks.step;
                    assert!(ticks.values.iter().all(|value| range.contains(value)));
                    assert!(
                        ticks.labels().iter().all(|label| label.len() < 16),
                        "{ticks:?}"
                    );
                }
            }
        }
        assert_eq!(spread([].into_iter()), None);
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), Some([1.0, 3.0]));
    }
}
