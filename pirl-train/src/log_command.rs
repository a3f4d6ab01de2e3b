//! A command of the user's that is handed what is logged: the way to any tracker of experiments.

use std::io::{self, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Result, TrainError};
use crate::run::Row;

/// Lines that wait for a command that is slower than the training; further ones are left out.
const WAITING: usize = 1024;

/// A running command whose standard input gets each [`Row`] as a line of JSON, those of `metrics.jsonl`.
///
/// It never holds the training up, nor ends it. Lines wait for a slow command, up to 1,024 of them; what comes
/// then is left out, and said so once. When it ends early, that is said once, with its exit status, and the
/// training goes on. Interrupting the training does not interrupt it: it sees the end of its input.
#[derive(Debug)]
pub struct LogCommand {
    child: Child,
    /// `None` once the command has ended, or its input was closed.
    lines: Option<SyncSender<Vec<u8>>>,
    /// Lines left out.
    left_out: u64,
}

impl LogCommand {
    /// Starts `command` by the shell, with `PIRL_RUN` set to `run`. What it prints goes to standard error.
    ///
    /// # Errors
    /// [`TrainError::Io`] if there is no shell.
    pub fn start(command: &str, run: &std::path::Path) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("PIRL_RUN", run)
            .stdin(Stdio::piped())
            .stdout(io::stderr());
        // Ctrl-C is for the training, which still has lines to log.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let failed = TrainError::io("start", std::path::Path::new("sh"));
        let mut child = shell.spawn().map_err(failed)?;
        let (sender, receiver) = sync_channel(WAITING);
        if let Some(input) = child.stdin.take() {
            thread::spawn(move || pass_on(&receiver, input));
        }
        Ok(Self {
            child,
            lines: Some(sender),
            left_out: 0,
        })
    }

    /// Hands it a row.
    pub fn write(&mut self, row: &Row) {
        let Some(lines) = &self.lines else { return };
        let Ok(mut line) = serde_json::to_vec(row) else {
            return;
        };
        line.push(b'\n');
        match lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                if self.left_out == 0 {
                    tracing::warn!(
                        "the log command is slower than the training: lines from step {} on are left \
                         out until it has caught up; metrics.jsonl has all",
                        row.step
                    );
                }
                self.left_out += 1;
            }
            Err(TrySendError::Disconnected(_)) => {
                self.lines = None;
                let status = self.wait(Duration::from_secs(1));
                tracing::warn!(
                    "the log command takes no more lines at step {} ({}); the training goes on, and \
                     metrics.jsonl has all",
                    row.step,
                    status.map_or("it still runs".to_owned(), |status| status.to_string())
                );
            }
        }
    }

    /// Closes its input and waits up to `patience` for it to end; then it is left to itself. Returns whether it
    /// ended well, with all lines read.
    pub fn finish(mut self, patience: Duration) -> bool {
        if self.left_out > 0 {
            tracing::warn!("{} lines were not handed to the log command", self.left_out);
        }
        let Some(lines) = self.lines.take() else {
            return false;
        };
        drop(lines);
        match self.wait(patience) {
            Some(status) if status.success() => self.left_out == 0,
            Some(status) => {
                tracing::warn!("the log command failed: {status}");
                false
            }
            None => {
                let id = self.child.id();
                tracing::warn!("the log command still runs, as process {id}; it is not waited for");
                false
            }
        }
    }

    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if start.elapsed() >= patience {
                return None;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Until there are no more lines, or nobody reads them.
fn pass_on(lines: &Receiver<Vec<u8>>, mut input: ChildStdin) {
    for line in lines {
        if input.write_all(&line).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn row(step: u64) -> Row {
        Row {
            step,
            epoch: 1,
            loss: 0.5,
            lr: 0.1,
            images_per_second: 1.0,
            data_wait: 0.0,
            metrics: BTreeMap::new(),
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn every_row_is_a_line_of_its_input_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = LogCommand::start("cat > \"$PIRL_RUN/lines\"", folder.path()).unwrap();
        for step in 1..=500 {
            command.write(&row(step));
        }
        assert!(command.finish(PATIENCE));
        let lines = fs::read_to_string(folder.path().join("lines")).unwrap();
        let steps = lines.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["loss"], 0.5);
            line["step"].as_u64().unwrap()
        });
        assert!(steps.eq(1..=500));
    }

    #[test]
    fn one_that_ends_early_is_given_up() {
        let mut command = LogCommand::start("read line; exit 3", Path::new(".")).unwrap();
        let start = Instant::now();
        let mut step = 0;
        while command.lines.is_some() {
            step += 1;
            command.write(&row(step));
            thread::sleep(Duration::from_millis(5));
            assert!(start.elapsed() < PATIENCE);
        }
        command.write(&row(step + 1));
        assert!(!command.finish(PATIENCE));
        let failing = LogCommand::start("cat > /dev/null; exit 3", Path::new(".")).unwrap();
        assert!(!failing.finish(PATIENCE));
    }

    #[test]
    fn a_slow_one_costs_lines_and_no_time() {
        // It reads nothing: a pipe's worth of lines and those that may wait are all that it gets.
        let mut command = LogCommand::start("exec sleep 3", Path::new(".")).unwrap();
        let start = Instant::now();
        for step in 1..=5000 {
            command.write(&row(step));
        }
        assert!(command.left_out > 0 && command.left_out < 5000);
        assert!(!command.finish(Duration::ZERO));
        assert!(start.elapsed() < Duration::from_secs(3));
    }
}
