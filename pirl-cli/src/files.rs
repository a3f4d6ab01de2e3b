//! Files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, RgbImage};
use pirl_data::Image;

/// Writes `bytes` beside `path`, syncs them and renames them to it, so that whatever stood there
/// stays whole until the new content is on the disk.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(everyone_reads())
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a picture as PNG, whole or not at all.
pub(crate) fn write_png(path: &Path, image: Image) -> Result<()> {
    let (width, height) = (u32::try_from(image.width)?, u32::try_from(image.height)?);
    let picture = RgbImage::from_raw(width, height, image.pixels)
        .context("the picture's pixels do not fill it")?;
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .context("encoding a picture as PNG")?;
    write_whole(path, png.get_ref())
}

/// Makes a rename or a new file inside `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes everything inside `folder` last.
pub(crate) fn sync_contents(folder: &Path) -> Result<()> {
    let reading = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {} to the disk", path.display()))?;
    }
    sync_folder(folder).with_context(|| format!("cannot write {} to the disk", folder.display()))
}

/// Temporary files are their owner's alone unless told otherwise; the umask still applies.
fn everyone_reads() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(0o666)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/config.toml");
        let error = format!("{:#}", write_whole(&path, b"x").unwrap_err());
        assert!(error.contains("absent/config.toml"), "{error}");
        write_whole(&folder.path().join("a"), b"1").unwrap();
        write_whole(&folder.path().join("a"), b"2").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"2");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
