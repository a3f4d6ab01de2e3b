//! One op after the other, against the plain reference on the CPU.

use std::fmt;

use candle_core::Device;
use pirl_core::explain;
use pirl_model::Ops;
use pirl_train::BoxError;
use serde::Serialize;

pub(crate) type Result<T> = std::result::Result<T, BoxError>;

/// Numbers by name: outputs and gradients.
pub type Numbers = Vec<(&'static str, Vec<f32>)>;

type Run = Box<dyn Fn(Ops, &Device) -> Result<Numbers>>;

/// Something that is computed in several ways.
pub struct Case {
    pub(crate) name: String,
    /// The largest error of a sound implementation.
    pub(crate) tolerance: f64,
    pub(crate) measure: Measure,
    run: Run,
}

/// How far numbers are from those of the reference.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// Largest difference by largest magnitude.
    Largest,
    /// Length of the difference by length: for whole networks, in which rounding adds up.
    Distance,
    /// 1 less the cosine: for numbers rounded on purpose.
    Angle,
}

/// What became of a [`Case`].
#[derive(Debug, Serialize)]
pub struct Check {
    /// The op, and what is special about this case.
    pub name: String,
    /// fast, or reference: Candle's own ops, on a device other than the CPU.
    pub ops: &'static str,
    /// Absent where the op failed, or its result is not a number.
    pub error: Option<f64>,
    /// The largest error of a sound implementation.
    pub tolerance: f64,
    /// Whether the error is within the tolerance.
    pub passed: bool,
    /// Which numbers are farthest off.
    pub worst: Option<&'static str>,
    /// Why there is no error to compare.
    pub message: Option<String>,
}

/// Runs each case by the fast ops of `device`, and on devices other than the CPU by the reference
/// ops there as well.
pub fn check_all(cases: &[Case], device: &Device) -> Vec<Check> {
    let ways: &[Ops] = if device.is_cpu() {
        &[Ops::Fast]
    } else {
        &[Ops::Fast, Ops::Reference]
    };
    let checks = cases.iter().flat_map(|case| {
        let truth = case.run(Ops::Reference, &Device::Cpu);
        let ways = ways.iter();
        let checks: Vec<_> = ways.map(|&ops| case.check(&truth, ops, device)).collect();
        checks
    });
    checks.collect()
}

impl Case {
    /// `run` computes the numbers, by given ops on a given device; those by the reference ops on the
    /// CPU are taken for true.
    pub fn new(
        name: impl Into<String>,
        tolerance: f64,
        measure: Measure,
        run: impl Fn(Ops, &Device) -> Result<Numbers> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            tolerance,
            measure,
            run: Box::new(run),
        }
    }

    /// Its numbers by `ops` on `device`.
    pub(crate) fn run(&self, ops: Ops, device: &Device) -> Result<Numbers> {
        (self.run)(ops, device)
    }

    fn check(&self, truth: &Result<Numbers>, ops: Ops, device: &Device) -> Check {
        let (error, worst, message) = match (truth, self.run(ops, device)) {
            (Ok(truth), Ok(found)) => {
                let (error, worst) = self.measure.compare(&found, truth);
                (Some(error), Some(worst), None)
            }
            (Err(error), _) => (
                None,
                None,
                Some(format!("the reference itself: {}", explain(error.as_ref()))),
            ),
            (_, Err(error)) => (None, None, Some(explain(error.as_ref()))),
        };
        let error = error.filter(|error| error.is_finite());
        Check {
            name: self.name.clone(),
            ops: match ops {
                Ops::Fast => "fast",
                Ops::Reference => "reference",
            },
            error,
            tolerance: self.tolerance,
            passed: error.is_some_and(|error| error <= self.tolerance),
            worst,
            message,
        }
    }
}

impl Measure {
    /// The error of the numbers that are farthest off, and their name.
    pub(crate) fn compare(self, found: &Numbers, truth: &Numbers) -> (f64, &'static str) {
        if found.len() != truth.len() {
            return (f64::INFINITY, "what is computed at all");
        }
        let errors = found.iter().zip(truth).map(|((name, found), (_, truth))| {
            let same_length = found.len() == truth.len();
            let error = if same_length {
                self.error(found, truth)
            } else {
                f64::INFINITY
            };
            // No number is farther off than any.
            (if error.is_nan() { f64::INFINITY } else { error }, *name)
        });
        errors
            .reduce(|a, b| if b.0 > a.0 { b } else { a })
            .unwrap_or((0.0, "nothing"))
    }

    fn error(self, found: &[f32], truth: &[f32]) -> f64 {
        let wide = |x: &f32| f64::from(*x);
        let pairs = || found.iter().map(wide).zip(truth.iter().map(wide));
        let length = |squares: f64| squares.sqrt();
        match self {
            Self::Largest => {
                // Not `f64::max`, which passes over what is not a number.
                let largest = |most: f64, x: f64| if x.abs() <= most { most } else { x.abs() };
                let off = pairs().map(|(a, b)| a - b).fold(0.0, largest);
                off / truth.iter().map(wide).fold(0.0, largest).max(1e-30)
            }
            Self::Distance => {
                let off = length(pairs().map(|(a, b)| (a - b).powi(2)).sum());
                off / length(pairs().map(|(_, b)| b * b).sum()).max(1e-30)
            }
            Self::Angle => {
                let dot: f64 = pairs().map(|(a, b)| a * b).sum();
                let of = |squares: f64| length(squares).max(1e-30);
                let a = of(pairs().map(|(a, _)| a * a).sum());
                let b = of(pairs().map(|(_, b)| b * b).sum());
                1.0 - dot / (a * b)
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "pass" } else { "FAIL" };
        write!(f, "{verdict}  {:9}  ", self.ops)?;
        match (self.error, &self.message, self.worst) {
            (Some(error), _, worst) => {
                write!(f, "{error:.1e} of {:.0e}", self.tolerance)?;
                match worst {
                    Some(worst) if !self.passed => write!(f, " ({worst})"),
                    _ => Ok(()),
                }
            }
            (None, Some(message), _) => f.write_str(message),
            (None, None, worst) => {
                write!(
                    f,
                    "not a number, or too many ({})",
                    worst.unwrap_or_default()
                )
            }
        }
    }
}
