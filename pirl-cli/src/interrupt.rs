//! Ctrl-C: the first asks the work to stop at a good place, the second stops it at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Becomes true at the first SIGINT or SIGTERM.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over the two signals; once a process.
    pub(crate) fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(130); // 128 + SIGINT, as shells have it
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self(flag))
    }

    pub(crate) fn seen(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself, for work that looks at it.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// Ends the process as soon as standard input ends, as it does when the process that holds its other end
/// has gone.
pub(crate) fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// Why a command ended early, and how to go on: not an error, but not done either.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted: {}", self.0)
    }
}

impl std::error::Error for Interrupted {}
