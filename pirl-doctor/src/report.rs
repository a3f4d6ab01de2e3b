//! Everything that was found, and the verdict.

use std::fmt;

use serde::Serialize;

use crate::machine::{Machine, Versions};
use crate::parity::Check;
use crate::speed::{Limit, Speed};

/// Everything that was found on a device.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The program.
    pub versions: Versions,
    /// Where it ran.
    pub device: Machine,
    /// Each op against the reference.
    pub checks: Vec<Check>,
    /// How fast training is.
    #[serde(flatten)]
    pub speed: Speed,
    /// Whether every check passed.
    pub passed: bool,
    /// In a sentence.
    pub verdict: String,
}

impl Report {
    /// Draws the conclusions.
    pub fn new(versions: Versions, device: Machine, checks: Vec<Check>, speed: Speed) -> Self {
        let failed = checks.iter().filter(|check| !check.passed).count();
        let count = checks.len();
        let ops = match failed {
            _ if count == 0 => "no op was compared with the reference".to_owned(),
            0 => format!("all {count} checks agree with the reference"),
            _ => format!("{failed} of {count} checks disagree with the reference"),
        };
        let limit = match speed.limit {
            Limit::Step => "the step limits training, not the loader",
            Limit::Loader => "the loader limits training, not the step: more CPU cores would help",
        };
        Self {
            versions,
            device,
            passed: failed == 0,
            verdict: format!("{ops}; {limit}"),
            checks,
            speed,
        }
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|check| !check.passed);
        failed.map(|check| check.name.as_str()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n", self.versions, self.device)?;
        let longest = self.checks.iter().map(|check| check.name.len()).max();
        let width = longest.unwrap_or(0);
        for check in &self.checks {
            writeln!(f, "{:width$}  {check}", check.name)?;
        }
        write!(f, "\n{}\n\n{}", self.speed, self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use pirl_model::Ops;

    use super::*;
    use crate::cases::cases;
    use crate::parity::{Case, Measure, check_all};
    use crate::speed::LoaderSpeed;

    fn report(cases: &[Case]) -> Report {
        let speed = Speed {
            recipe: "none".to_owned(),
            step: Vec::new(),
            loader: LoaderSpeed {
                images_per_second: 1.0,
                workers: 1,
            },
            limit: Limit::Step,
        };
        let machine = Machine::of("cpu", &Device::Cpu).unwrap();
        let checks = check_all(cases, &Device::Cpu);
        Report::new(Versions::new(None, &Device::Cpu), machine, checks, speed)
    }

    /// An op whose fast version is wrong by `error` in one of its numbers.
    fn op(name: &'static str, error: f32) -> Case {
        Case::new(name, 1e-5, Measure::Largest, move |ops, _| {
            let wrong = if ops == Ops::Fast { error } else { 0.0 };
            Ok(vec![
                ("output", vec![1.0, 2.0]),
                ("gradient", vec![0.5, -4.0 + wrong]),
            ])
        })
    }

    #[test]
    fn an_op_that_disagrees_is_named_and_fails_the_command() {
        let healthy = report(&[op("sound", 0.0), op("rounding", 1e-5)]);
        assert!(healthy.passed && healthy.failed().is_empty());
        assert!(healthy.verdict.contains("all 2 checks agree"));

        let sick = report(&[op("sound", 0.0), op("broken", 1e-3)]);
        assert!(!sick.passed);
        assert!(sick.verdict.contains("1 of 2 checks disagree"));
        assert_eq!(sick.failed(), ["broken"]);
        let check = &sick.checks[1];
        assert!((check.error.unwrap() - 2.5e-4).abs() < 1e-6, "{check:?}");
        assert_eq!(check.worst, Some("gradient"));
        let text = sick.to_string();
        assert!(text.contains("FAIL") && text.contains("gradient"), "{text}");
    }

    #[test]
    fn numbers_that_are_none_and_ops_that_fail_disagree() {
        assert!(!report(&[op("infinite", f32::INFINITY)]).passed);
        assert!(!report(&[op("no number", f32::NAN)]).passed);
        let fails = Case::new("fails", 1e-5, Measure::Largest, |ops, _| match ops {
            Ops::Fast => Err("no kernel".into()),
            Ops::Reference => Ok(vec![("output", vec![1.0])]),
        });
        let report = report(&[fails]);
        assert!(!report.passed);
        assert_eq!(report.checks[0].message.as_deref(), Some("no kernel"));
    }

    #[test]
    fn every_real_case_can_be_told_from_a_wrong_one() {
        // The reference of each case, spoilt by ten times the tolerance, must fail.
        for case in cases() {
            let truth = case.run(Ops::Reference, &Device::Cpu).unwrap();
            let spoilt: Vec<_> = truth
                .iter()
                .map(|(name, numbers)| {
                    let far = |x: &f32| x * (1.0 + 10.0 * case.tolerance as f32) + 1e-3;
                    (*name, numbers.iter().rev().map(far).collect::<Vec<_>>())
                })
                .collect();
            let (error, _) = case.measure.compare(&spoilt, &truth);
            assert!(error > case.tolerance, "{}: {error}", case.name);
        }
    }
}
