//! Progress on standard error: a bar on a terminal, plain lines anywhere else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Plain lines are this far apart.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How far some work of known length has come.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    unit: &'static str,
    total: u64,
    first: u64,
    started: Instant,
    printed: Instant,
}

impl Progress {
    /// `total` pieces of work called `unit`, of which `done` were done before.
    pub(crate) fn new(what: &'static str, unit: &'static str, total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            bar.reset_eta();
            let template = format!(
                "{what} {{bar:30}} {{pos}}/{{len}} {unit} {{per_sec}}, {{eta_precise}} left {{msg}}"
            );
            // The template is ours: should it be wrong, the plain bar serves.
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            what,
            unit,
            total,
            first: done,
            started: now,
            printed: now,
        }
    }

    /// Shows how far `work` has come, which is given what to call with the pieces done and those in all.
    pub(crate) fn watch<T>(
        what: &'static str,
        unit: &'static str,
        total: usize,
        work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T,
    ) -> T {
        let mut progress = Self::new(what, unit, total as u64, 0);
        let found = work(&mut |done, _| progress.at(done as u64, String::new));
        progress.finish();
        found
    }

    /// The work.
    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    /// `done` pieces are done; `note` is what else to say.
    pub(crate) fn at(&mut self, done: u64, note: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(note());
            }
            None if done >= self.total || self.printed.elapsed() >= PLAIN_EVERY => {
                self.printed = Instant::now();
                eprintln!("{}", self.line(done, &note()));
            }
            None => {}
        }
    }

    /// Takes the bar off the terminal while `work` shows something else.
    pub(crate) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, done: u64, note: &str) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let rate = done.saturating_sub(self.first) as f64 / elapsed.max(1e-9);
        let left = if rate > 0.0 {
            self.total.saturating_sub(done) as f64 / rate
        } else {
            0.0
        };
        format!(
            "{} {done}/{} {} {rate:.1}/s, {} left {note}",
            self.what,
            self.total,
            self.unit,
            clock(left)
        )
    }
}

fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_reads_hours_minutes_seconds() {
        assert_eq!(clock(3_725.9), "1:02:05");
    }
}
