//! Standard output, files of results, and errors in words.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::Image;
use pirl_report::png;
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

/// Writes a picture as PNG, whole or not at all.
pub(crate) fn write_png(path: &Path, image: &Image) -> Result<()> {
    write_file(path, &png(image)?)
}

/// The chain of an error's causes, leaving out those that their effect has already quoted.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(cause.trim()) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause.trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_already_quoted_is_not_said_twice() {
        let error = anyhow::anyhow!("no such file")
            .context("cannot read x: no such file")
            .context("opening the pack");
        assert_eq!(
            explain(&error),
            "opening the pack: cannot read x: no such file"
        );
    }
}
