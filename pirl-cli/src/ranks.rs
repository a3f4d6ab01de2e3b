//! The ranks of a command that several processes run together.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pirl_train::{Join, Place, Ranks, join, launched};

use crate::interrupt::Interrupted;

/// How long a rank waits until it reports an error that rank 0 may have too.
const AFTER_RANK_0: Duration = Duration::from_secs(1);

/// An error if this process is one of several: for commands that do all the work in one.
pub(crate) fn ensure_alone() -> Result<()> {
    match launched(|name| std::env::var(name).ok())? {
        None => Ok(()),
        Some(Place { launcher, size, .. }) => bail!(
            "{launcher} started {size} of these, and only pretrain, eval and embed share their work: start it once"
        ),
    }
}

/// This rank's number on its machine, from 0.
pub(crate) fn local() -> Result<usize> {
    Ok(launched(|name| std::env::var(name).ok())?.map_or(0, |place| place.local))
}

/// Does the work of a command as one of the ranks that were started, or alone.
pub(crate) fn share(timeout: Duration, work: impl FnOnce(&Company) -> Result<()>) -> Result<()> {
    let company = Company::join(timeout)?;
    let result = work(&company);
    company.end(result)
}

/// This process among those launched with it.
pub(crate) struct Company {
    pub(crate) ranks: Ranks,
    /// Where errors go to; what else a rank but the first prints goes elsewhere.
    terminal: Option<OwnedFd>,
}

impl Company {
    /// Joins the others. What ranks but the first print is dropped until [`Company::log_to`].
    fn join(timeout: Duration) -> Result<Self> {
        let place = launched(|name| std::env::var(name).ok())?;
        let ranks = join(place.as_ref(), &Join { timeout })?;
        let mut company = Self {
            ranks,
            terminal: None,
        };
        if !company.leads() {
            let terminal = std::io::stderr().as_fd().try_clone_to_owned();
            company.terminal = Some(terminal.context("cannot keep standard error")?);
            company.print_to(&File::options().write(true).open("/dev/null")?)?;
        }
        Ok(company)
    }

    /// Whether this is the one rank that writes and prints.
    pub(crate) fn leads(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Where this rank writes, of what was asked for: one does.
    pub(crate) fn writes_to<'a>(&self, out: &'a Option<PathBuf>) -> Option<&'a PathBuf> {
        out.as_ref().filter(|_| self.leads())
    }

    /// The path with this rank's number in place of `{rank}`.
    pub(crate) fn own_path(&self, path: &Path) -> PathBuf {
        let own = self.ranks.rank().to_string();
        path.to_string_lossy().replace("{rank}", &own).into()
    }

    /// From here on ranks but the first print to `rank-N.log` in `folder`, which rank 0 has made.
    pub(crate) fn log_to(&self, folder: &Path) -> Result<()> {
        self.ranks.barrier()?;
        if self.leads() || !folder.is_dir() {
            return Ok(()); // a folder that this machine does not see has no log of it
        }
        let path = folder.join(format!("rank-{}.log", self.ranks.rank()));
        let file = File::options().create(true).append(true).open(&path);
        self.print_to(&file.with_context(|| format!("cannot write {}", path.display()))?)
    }

    fn print_to(&self, file: &File) -> Result<()> {
        rustix::stdio::dup2_stdout(file)?;
        Ok(rustix::stdio::dup2_stderr(file)?)
    }

    /// Ends the command: after an error here, that of all ranks.
    fn end(self, result: Result<()>) -> Result<()> {
        let Err(error) = result else {
            return Ok(());
        };
        if self.ranks.size() == 1 || error.is::<Interrupted>() {
            return if self.leads() { Err(error) } else { Ok(()) };
        }
        if !self.leads() {
            thread::sleep(AFTER_RANK_0);
        }
        if let Some(terminal) = &self.terminal {
            let _ = rustix::stdio::dup2_stderr(terminal);
        }
        let reason = pirl_core::explain(error.as_ref());
        eprintln!("error: rank {}: {reason}", self.ranks.rank());
        self.ranks.abort(&reason);
        Err(error)
    }
}
