//! `pirl`: PIRL pre-training and its evaluation on the command line.
//!
//! This crate parses, checks, joins the other crates and reports; the mathematics is theirs.

mod args;
mod commands;
mod device;
mod interrupt;
mod output;
mod progress;
mod ranks;
mod run_dir;
mod session;
mod weights;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use pirl_core::allocator::{self, Allocator};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{AnalyzeCommand, Cli, Command, DataCommand};
use crate::interrupt::Interrupted;

#[global_allocator]
static ALLOCATOR: Allocator = allocator::allocator();

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let cli = Cli::parse(); // exits with 2 on wrong usage
    log_to_stderr();
    if cli.end_with_stdin {
        interrupt::end_with_stdin();
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.is::<Interrupted>() {
                eprintln!("{error}");
            } else {
                eprintln!("error: {}", pirl_core::explain(error.as_ref()));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    pirl_core::Instructions::allowed()?;
    if let Command::Analyze(_) | Command::Report(_) | Command::Study(_) = command {
        ranks::ensure_alone()?;
    }
    if computes_here(&command) {
        pirl_core::join_pool();
    }
    match command {
        Command::Data(DataCommand::Fetch(args)) => commands::data::fetch(&args),
        Command::Data(DataCommand::Pack(args)) => commands::data::pack(&args),
        Command::Data(DataCommand::Inspect(args)) => commands::inspect::run(&args),
        Command::Data(DataCommand::Stats(args)) => commands::stats::run(&args),
        Command::Data(DataCommand::Preview(args)) => commands::preview::run(&args),
        Command::Data(DataCommand::Bench(args)) => commands::bench::run(&args),
        Command::Data(DataCommand::Compose(args)) => commands::compose::run(&args),
        Command::Pretrain(args) => commands::pretrain::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Analyze(AnalyzeCommand::Neighbours(args)) => commands::analyze::neighbours(&args),
        Command::Analyze(AnalyzeCommand::Invariance(args)) => commands::analyze::invariance(&args),
        Command::Analyze(AnalyzeCommand::Map(args)) => commands::analyze::map(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Study(args) => commands::study::run(&args),
        Command::Embed(args) => commands::embed::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Recipes(args) => commands::recipes::run(&args),
        Command::Completions(args) => commands::manual::completions(&args),
        Command::Man(args) => commands::manual::man(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
    }
}

/// Whether this thread has all the work that the pool shares: several devices have a thread each, packing and
/// studies have threads of their own.
fn computes_here(command: &Command) -> bool {
    match command {
        Command::Pretrain(args) => !args.run.device.contains(','),
        Command::Eval(_)
        | Command::Analyze(_)
        | Command::Report(_)
        | Command::Embed(_)
        | Command::Doctor(_) => true,
        _ => false,
    }
}

/// Warnings and errors, or what `RUST_LOG` asks for.
fn log_to_stderr() {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .and_then(|filter| filter.parse::<Targets>().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(wanted)
        .init();
}
