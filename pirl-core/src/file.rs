//! Files and folders that are whole or absent.
//!
//! What is new is written aside, synced and renamed, so that what stood under the name stays whole
//! until the new content is on the disk; after a failure nothing is left of what was written. Files
//! have the permissions that the process's umask leaves, as any others.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::Path;

use tempfile::{Builder, TempDir};

/// Writes `bytes` as the file `path`.
///
/// # Errors
/// The system's; `path` is as it was then.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Writes the file `path` by `write`, which gets an empty file.
///
/// # Errors
/// The system's, or that of `write`; `path` is as it was then.
pub fn write_with<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let folder = folder_of(path);
    let mut builder = Builder::new();
    builder.prefix(".unfinished-");
    #[cfg(unix)]
    builder.permissions(permissions(0o666));
    let mut aside = builder.tempfile_in(folder)?;
    write(aside.as_file_mut())?;
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    Ok(sync_folder(folder)?)
}

/// Writes the file `path` by `write`, which gets the path of a file to write or to replace: for code
/// that opens its files itself.
///
/// # Errors
/// The system's, or that of `write`; `path` is as it was then.
pub fn write_path<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let folder = folder_of(path);
    let aside = aside(folder)?;
    let file = aside.path().join("file");
    let permissions = File::create(&file)?.metadata()?.permissions();
    write(&file)?;
    let written = File::open(&file)?;
    written.set_permissions(permissions)?;
    written.sync_all()?;
    fs::rename(&file, path)?;
    Ok(sync_folder(folder)?)
}

/// Writes the folder `path`, which must not exist, by `write`, which gets an empty folder; files in it
/// are synced, folders in it are not looked into.
///
/// # Errors
/// The system's, or that of `write`; there is no `path` then.
pub fn write_folder<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let folder = folder_of(path);
    let aside = aside(folder)?; // dropped on failure, which removes it
    write(aside.path())?;
    for entry in fs::read_dir(aside.path())? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync_folder(aside.path())?;
    fs::rename(aside.path(), path)?;
    let _ = aside.keep(); // the name is gone: nothing to remove
    Ok(sync_folder(folder)?)
}

/// Names of what these functions write aside begin with this: a process that was
/// killed leaves it.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with(".unfinished-")
}

/// Makes a rename or a new file inside `folder` outlive a power cut, on systems that can.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn aside(folder: &Path) -> io::Result<TempDir> {
    let mut builder = Builder::new();
    builder.prefix(".unfinished-");
    #[cfg(unix)]
    builder.permissions(permissions(0o777));
    builder.tempdir_in(folder)
}

/// Temporary files are their owner's alone unless told otherwise; the umask still applies.
#[cfg(unix)]
fn permissions(mode: u32) -> Permissions {
    use std::os::unix::fs::PermissionsExt;
    Permissions::from_mode(mode)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_the_old_one_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(write(&folder.path().join("absent/a"), b"x").is_err());
        write(&path, b"1").unwrap();
        let failed: io::Result<()> = write_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no space"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        assert_eq!(fs::read(&path).unwrap(), b"1");
        write(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        let failed: io::Result<()> = write_path(&path, |aside| {
            fs::write(aside, "half")?;
            Err(io::Error::other("no space"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"2");
        write_path(&path, |aside| fs::write(aside, "3")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_folder_is_whole_or_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let failed: io::Result<()> = write_folder(&path, |aside| {
            fs::write(aside.join("x"), "half")?;
            assert!(is_unfinished(&names(folder.path())[0]));
            Err(io::Error::other("no space"))
        });
        assert!(failed.is_err());
        assert!(names(folder.path()).is_empty());
        write_folder(&path, |aside| fs::write(aside.join("x"), "whole")).unwrap();
        assert_eq!(fs::read(path.join("x")).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_lets_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        write(&ours, b"").unwrap();
        assert_eq!(mode(&ours), mode(&plain));
        write_path(&ours, |aside| fs::write(aside, "")).unwrap();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
