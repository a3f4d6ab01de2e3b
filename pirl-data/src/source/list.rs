use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{RawSample, Source, read_image_file};
use crate::DataError;

/// The largest label a list may use, so that a stray number is an error and not a class list of
/// a thousand million names.
const MAX_LABEL: u32 = 1_000_000;

/// A text file with an image a line: `path` or `path<tab>label`.
///
/// Paths are relative to the folder of the list. Labels are all integers from 0, which become the
/// class names "0", "1", ... up to the largest, or otherwise class names, numbered in sorted order.
/// Either every line has a label or none has. Empty lines and lines that begin with `#` are skipped.
#[derive(Clone, Debug)]
pub struct List {
    path: PathBuf,
    files: Vec<(String, Option<u32>)>,
    class_names: Vec<String>,
}

impl List {
    /// Reads the list at `path`; the images themselves are read later.
    ///
    /// # Errors
    /// [`DataError::Io`] when the list cannot be read, [`DataError::List`] with the line that is
    /// wrong, [`DataError::Empty`] when it names no image.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
        let error = |line: usize, reason: String| DataError::List {
            path: path.to_owned(),
            line,
            reason,
        };

        let mut entries: Vec<(usize, &str, Option<&str>)> = Vec::new();
        for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let number = number + 1;
            let line = std::str::from_utf8(line)
                .map_err(|_| error(number, "not UTF-8 text".to_owned()))?
                .trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (file, label) = match line.split_once('\t') {
                Some((file, label)) => (file, Some(label.trim())),
                None => (line, None),
            };
            if file.is_empty() {
                return Err(error(number, "no path before the tab".to_owned()));
            }
            if label.is_some_and(|label| label.is_empty() || label.contains('\t')) {
                return Err(error(
                    number,
                    "expected one label after the tab: path<tab>label".to_owned(),
                ));
            }
            if let Some((first, _, first_label)) = entries.first()
                && first_label.is_some() != label.is_some()
            {
                let (this, that) = match label {
                    Some(_) => ("has a label", "has none"),
                    None => ("has no label", "has one"),
                };
                return Err(error(number, format!("{this}, but line {first} {that}")));
            }
            entries.push((number, file, label));
        }
        if entries.is_empty() {
            return Err(DataError::Empty {
                path: path.to_owned(),
                expected: "lines of the form path or path<tab>label",
            });
        }

        let is_integer =
            |label: &str| label.parse::<i64>().is_ok() || label.bytes().all(|b| b.is_ascii_digit());
        let integers = entries.iter().filter_map(|entry| entry.2).all(is_integer);
        let names: Vec<&str> = if integers {
            Vec::new()
        } else {
            let distinct: BTreeSet<&str> = entries.iter().filter_map(|entry| entry.2).collect();
            distinct.into_iter().collect()
        };
        let mut files = Vec::with_capacity(entries.len());
        let mut classes = 0;
        for (number, file, label) in entries {
            let label = match label {
                None => None,
                Some(label) if integers => {
                    let value = label.parse().ok().filter(|value| *value <= MAX_LABEL);
                    Some(value.ok_or_else(|| {
                        error(number, format!("label {label} is outside 0..={MAX_LABEL}"))
                    })?)
                }
                Some(label) => names
                    .binary_search(&label)
                    .ok()
                    .and_then(|class| u32::try_from(class).ok()),
            };
            classes = classes.max(label.map_or(0, |label| label + 1));
            files.push((file.to_owned(), label));
        }
        let class_names = if integers {
            (0..classes).map(|label| label.to_string()).collect()
        } else {
            names.into_iter().map(str::to_owned).collect()
        };
        Ok(Self {
            path: path.to_owned(),
            files,
            class_names,
        })
    }
}

impl Source for List {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let (file, label) = self.files.get(index).ok_or(DataError::Index {
            index,
            len: self.files.len(),
        })?;
        let folder = self.path.parent().unwrap_or(Path::new(""));
        read_image_file(&folder.join(file), file.clone(), *label)
    }

    fn describe(&self) -> String {
        format!("list {}", self.path.display())
    }
}
