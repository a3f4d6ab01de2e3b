//! A folder that one process at a time may write to.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Held while its process works in a folder. The system lets go of it when the process ends, however it
/// ends, so what a dead process has left is taken over.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Why a folder is not locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process works in it.
    #[error("{holder} works in this folder; end it first, or choose another folder")]
    Held {
        /// Its number and host.
        holder: String,
    },
    /// The lock's file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FolderLock {
    /// Locks `folder`, which must exist, by the file `lock` in it, which stays there.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process holds it, [`LockError::Io`].
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join("lock");
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                write!(file, "process {} on {}", std::process::id(), host())?;
                file.flush()?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.rewind()?;
                file.take(1000).read_to_string(&mut holder)?;
                if holder.is_empty() {
                    holder = "another process".to_owned();
                }
                Err(LockError::Held { holder })
            }
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// The name of this machine, as far as Linux or the environment tell it.
fn host() -> String {
    let of_system = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = of_system.or_else(|| {
        std::env::var("HOSTNAME")
            .or_else(|_| std::env::var("COMPUTERNAME"))
            .ok()
    });
    name.map_or("an unknown host".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_a_dead_holders_lock_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::acquire(folder.path()).unwrap();
        let second = FolderLock::acquire(folder.path()).unwrap_err().to_string();
        let holder = format!("process {} on ", std::process::id());
        assert!(
            second.starts_with(&holder) && second.contains("another folder"),
            "{second}"
        );
        drop(first);
        // What a process that is no more has left.
        std::fs::write(
            folder.path().join("lock"),
            "process 1 on a machine with a longer name",
        )
        .unwrap();
        let third = FolderLock::acquire(folder.path()).unwrap();
        let left = std::fs::read_to_string(folder.path().join("lock")).unwrap();
        assert!(
            left.starts_with(&holder) && !left.contains("longer"),
            "{left}"
        );
        drop(third);
    }
}
