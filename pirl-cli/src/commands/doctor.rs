//! `pirl doctor`: does this machine compute what it should, and how fast?

use std::time::Duration;

use anyhow::{Result, ensure};
use candle_core::Device;
use pirl_doctor::{Machine, RecipeWorkload, Report, Speed, Versions, cases, check_all};

use crate::args::DoctorArgs;
use crate::device;
use crate::output::{print, print_json};

/// Sizes of the batches that are timed.
const ON_CPU: [usize; 3] = [2, 4, 8];
const ON_GPU: [usize; 4] = [16, 32, 64, 128];

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let device = device::parse(&args.device)?;
    let cases = if args.skip_checks {
        Vec::new()
    } else {
        cases()
    };
    let checks = check_all(&cases, &device);
    let report = Report::new(
        Versions::new(option_env!("PIRL_CANDLE_VERSION"), &device),
        Machine::of(&args.device, &device)?,
        checks,
        speed(args, &device)?,
    );
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.to_string())?;
    }
    ensure!(
        report.passed,
        "{} on {}: do not trust what is trained here with them; report it with the output of \
         `pirl doctor --json`",
        report.failed().join(", "),
        report.device.name
    );
    Ok(())
}

fn speed(args: &DoctorArgs, device: &Device) -> Result<Speed> {
    let recipe = args.recipe.load()?;
    let sizes: &[usize] = match args.batch_sizes.as_slice() {
        [] if device.is_cpu() => &ON_CPU,
        [] => &ON_GPU,
        sizes => sizes,
    };
    let time = Duration::from_secs(args.seconds.into());
    let workload = RecipeWorkload::new(recipe, device);
    Ok(Speed::measure(&args.recipe.name, &workload, sizes, time)?)
}
