//! Standard output, files of results, and errors in words.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints `text` and a line's end; a reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints one JSON object.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).context("writing the result as JSON")?)
}

/// Writes a file, whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    pirl_core::file::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a result as `result.json` into `folder`.
pub(crate) fn write_result(folder: &Path, result: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(result).context("writing the result as JSON")?;
    write_file(&folder.join("result.json"), format!("{text}\n").as_bytes())
}

/// The path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(quoted(Path::new("my 'run'")), r"'my '\''run'\'''");
    }
}
