//! `pirl doctor`: does this machine compute what it should, and how fast?

mod cases;
mod machine;
mod parity;
mod speed;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::device;
use crate::output::{print, print_json};

use machine::{Machine, Versions};
use parity::Check;
use speed::{Limit, Speed};

/// Everything the doctor found.
#[derive(Debug, Serialize)]
struct Report {
    versions: Versions,
    device: Machine,
    checks: Vec<Check>,
    #[serde(flatten)]
    speed: Speed,
    /// Whether every check passed.
    passed: bool,
    verdict: String,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let checks = parity::check_all(&cases::all(), &device);
    let report = Report::new(
        Versions::new(),
        Machine::of(&args.device, &device)?,
        checks,
        speed::measure(args, &device)?,
    );
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.to_text())?;
    }
    report.ensure_passed()
}

impl Report {
    fn new(versions: Versions, device: Machine, checks: Vec<Check>, speed: Speed) -> Self {
        let failed = checks.iter().filter(|check| !check.passed).count();
        let count = checks.len();
        let ops = match failed {
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

    /// Exit code 1 when an op disagrees.
    fn ensure_passed(&self) -> Result<()> {
        let failed = self.checks.iter().filter(|check| !check.passed);
        let failed: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
        ensure!(
            failed.is_empty(),
            "{} on {}: do not trust what is trained here with them; report it with the output of \
             `pirl doctor --json`",
            failed.join(", "),
            self.device.name
        );
        Ok(())
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.versions, self.device);
        let longest = self.checks.iter().map(|check| check.name.len()).max();
        let width = longest.unwrap_or(0);
        for check in &self.checks {
            text += &format!("{:width$}  {check}\n", check.name);
        }
        format!("{text}\n{}\n\n{}", self.speed, self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use pirl_model::Ops;

    use super::parity::{Case, Measure};
    use super::*;

    fn report(cases: &[Case]) -> Report {
        let speed = Speed::for_tests();
        let machine = Machine::of("cpu", &Device::Cpu).unwrap();
        let checks = parity::check_all(cases, &Device::Cpu);
        Report::new(Versions::new(), machine, checks, speed)
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
        assert!(healthy.passed && healthy.ensure_passed().is_ok());
        assert!(healthy.verdict.contains("all 2 checks agree"));

        let sick = report(&[op("sound", 0.0), op("broken", 1e-3)]);
        assert!(!sick.passed);
        assert!(sick.verdict.contains("1 of 2 checks disagree"));
        let error = sick.ensure_passed().unwrap_err().to_string();
        assert!(
            error.contains("broken") && !error.contains("sound"),
            "{error}"
        );
        let check = &sick.checks[1];
        assert!((check.error.unwrap() - 2.5e-4).abs() < 1e-6, "{check:?}");
        assert_eq!(check.worst, Some("gradient"));
        let text = sick.to_text();
        assert!(text.contains("FAIL") && text.contains("gradient"), "{text}");
    }

    #[test]
    fn numbers_that_are_none_and_ops_that_fail_disagree() {
        assert!(!report(&[op("infinite", f32::INFINITY)]).passed);
        assert!(!report(&[op("no number", f32::NAN)]).passed);
        let fails = Case::new("fails", 1e-5, Measure::Largest, |ops, _| match ops {
            Ops::Fast => anyhow::bail!("no kernel"),
            Ops::Reference => Ok(vec![("output", vec![1.0])]),
        });
        let report = report(&[fails]);
        assert!(!report.passed);
        assert_eq!(report.checks[0].message.as_deref(), Some("no kernel"));
    }

    #[test]
    fn every_real_case_can_be_told_from_a_wrong_one() {
        // The reference of each case, spoilt by ten times the tolerance, must fail.
        for case in cases::all() {
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
