use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::{has_image_ending, read_image_file};
use super::{RawSample, Source, labels, stamp_file, text};
use crate::{DataError, Skipped};

/// A list of ten million long paths.
const MAX_BYTES: u64 = 2 << 30;
/// What headers call the column of paths, and that of labels.
const PATH_NAMES: [&str; 10] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "image_id",
];
pub(super) const LABEL_NAMES: [&str; 7] = [
    "label",
    "class",
    "class_name",
    "target",
    "category",
    "label_name",
    "labels",
];
const FORM: &str = "expected path, or path and label with a tab, a comma or spaces between them";

/// Which columns of a list, or of Parquet files, are read, by the names in its header or by their numbers from 1; what is
/// `None` is found from the header, or is the first column and the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The paths; of Parquet files the images.
    pub path: Option<String>,
    /// The labels.
    pub label: Option<String>,
}

impl std::str::FromStr for Columns {
    type Err = String;

    /// `path=NAME,label=NAME`, either of the two alone as well.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("path", name)) if !name.is_empty() => columns.path = Some(name.to_owned()),
                Some(("label", name)) if !name.is_empty() => columns.label = Some(name.to_owned()),
                _ => return Err(format!("{part:?} is neither path=COLUMN nor label=COLUMN")),
            }
        }
        Ok(columns)
    }
}

/// A text file with an image a line: a path, or a path and a label.
///
/// Tab-separated, comma-separated (with quotes as RFC 4180 has them) or separated by semicolons or
/// spaces, which the first lines tell; with a header line or without; in UTF-8, or in UTF-16 with a
/// byte-order mark. Windows paths are read on other systems. Paths are relative to the folder of the
/// list.
///
/// Labels are all integers from 0, which become the class names "0", "1", ... up to the largest, or
/// otherwise class names, numbered in sorted order. Either every line has a label or none has. Empty
/// lines are skipped, and lines that begin with `# ` are comments, which [`Source::notes`] counts.
/// A file that is not there is listed in [`Source::skipped`].
#[derive(Clone, Debug)]
pub struct List {
    path: PathBuf,
    files: Vec<(String, Option<u32>)>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
    notes: Vec<Skipped>,
}

/// A line of the list: its number, path and label.
type Entry = (usize, String, Option<String>);

impl List {
    /// Reads the list at `path`; the images themselves are read later.
    ///
    /// # Errors
    /// [`DataError::Io`] when the list cannot be read, [`DataError::List`] with the line that is
    /// wrong, [`DataError::Empty`] when it names no image, [`DataError::Nothing`] when none is there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::with_columns(path, &Columns::default())
    }

    /// The same, of these columns.
    ///
    /// # Errors
    /// As [`List::open`].
    pub fn with_columns(path: impl AsRef<Path>, columns: &Columns) -> Result<Self, DataError> {
        let path = path.as_ref();
        let bytes = text::read_bytes(path, MAX_BYTES, "list")?;
        let error = |line: usize, reason: String| DataError::List {
            path: path.to_owned(),
            line,
            reason,
        };
        let text = text::decode(&bytes).map_err(|(line, reason)| error(line, reason))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let text = match text.contains('\n') {
            true => text,
            false => text.replace('\r', "\n").into(),
        };
        let (entries, comments) =
            entries(&text, columns, folder).map_err(|(line, reason)| error(line, reason))?;
        if entries.is_empty() {
            return Err(DataError::Empty {
                path: path.to_owned(),
                expected: "lines of the form path, or path and label",
            });
        }
        let given: Vec<_> = entries.iter().map(|entry| entry.2.clone()).collect();
        let (labels, class_names) =
            labels::number(&given).map_err(|(place, reason)| error(entries[place].0, reason))?;
        let found: Vec<bool> = entries
            .par_iter()
            .map(|(_, file, _)| folder.join(file).is_file())
            .collect();
        let mut list = Self {
            path: path.to_owned(),
            files: Vec::with_capacity(entries.len()),
            class_names,
            skipped: Vec::new(),
            notes: Vec::new(),
        };
        for ((entry, label), found) in entries.into_iter().zip(labels).zip(found) {
            let (line, file, _) = entry;
            if found {
                list.files.push((file, label));
            } else {
                list.skipped.push(Skipped {
                    name: format!("{}, line {line}: {file}", path.display()),
                    reason: "there is no such file".to_owned(),
                });
            }
        }
        if comments > 0 {
            list.notes.push(Skipped {
                name: path.display().to_string(),
                reason: format!("{comments} lines that begin with \"# \" are comments"),
            });
        }
        if list.files.is_empty() {
            return Err(DataError::nothing(path, &list.skipped));
        }
        Ok(list)
    }
}

/// The lines that name images, and how many are comments.
fn entries(
    text: &str,
    columns: &Columns,
    folder: &Path,
) -> Result<(Vec<Entry>, usize), (usize, String)> {
    let is_comment = |line: &str| line.starts_with("# ") || line.trim_end() == "#";
    let comments = text.lines().filter(|line| is_comment(line)).count();
    let lines = || {
        text.lines()
            .filter(|line| !line.trim().is_empty() && !is_comment(line))
    };
    let named = columns.path.is_some() || columns.label.is_some();
    let delimiter = delimiter(lines(), named, folder);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        // Spaces between columns may be several, which is no format of CSV; tabs have no quotes.
        .quoting(delimiter == b',' || delimiter == b';')
        .from_reader(text.as_bytes());
    let mut entries: Vec<Entry> = Vec::new();
    let mut places: Option<(usize, Option<usize>)> = None;
    // Whether a line may have no more columns than are read: of a list that names none.
    let mut exact = !named;
    // The line of the byte that the last record began at.
    let (mut line, mut at) = (1, 0);
    let mut record = csv::StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) => return Err((reader.position().line() as usize, error.to_string())),
        }
        let begin = record.position().map_or(0, csv::Position::byte) as usize;
        let empty = text[begin..].len() - text[begin..].trim_start_matches(['\r', '\n']).len();
        line += memchr::memchr_iter(b'\n', &text.as_bytes()[at..begin + empty]).count();
        at = begin + empty;
        let number = line;
        let fields: Vec<String> = fields(&record, delimiter);
        let whole = fields.join("\t");
        if whole.trim().is_empty() || is_comment(&whole) {
            continue;
        }
        let (path_at, label_at) = match places {
            Some(places) => places,
            None => {
                let header = header(&fields, columns, folder).map_err(|reason| (number, reason))?;
                if header.is_some() {
                    exact = false;
                    places = header;
                    continue;
                }
                let found = numbers(columns, &fields).map_err(|reason| (number, reason))?;
                *places.insert(found)
            }
        };
        let field = |at: usize| {
            fields
                .get(at)
                .map(|field| field.trim())
                .filter(|field| !field.is_empty())
        };
        let wrong = |what: &str| {
            let shown: String = whole.chars().take(80).collect();
            (number, format!("{what} in {shown:?}; {FORM}"))
        };
        let file = field(path_at).ok_or_else(|| wrong("no path"))?;
        let label = match label_at {
            Some(at) => Some(field(at).ok_or_else(|| wrong("no label"))?.to_owned()),
            None if exact && fields.len() > 1 => {
                return Err(wrong("a label, which the lines before it do not have,"));
            }
            None => None,
        };
        if exact && fields.iter().skip(2).any(|field| !field.trim().is_empty()) {
            return Err(wrong(
                "more than a path and a label (name the columns: --columns path=1,label=2)",
            ));
        }
        entries.push((number, portable(file, folder), label));
    }
    Ok((entries, comments))
}

/// Tab, comma, semicolon or space: what stands between path and label. A path may have spaces and
/// commas, so a line that is the path of a file as a whole has no label, unless there are `several`
/// columns.
fn delimiter<'a>(lines: impl Iterator<Item = &'a str>, several: bool, folder: &Path) -> u8 {
    let lines: Vec<&str> = lines.take(20).collect();
    if lines.iter().any(|line| line.contains('\t')) {
        return b'\t';
    }
    let whole = |line: &&str| {
        let path = line.trim();
        let is_path =
            has_image_ending(Path::new(path)) || folder.join(portable(path, folder)).is_file();
        is_path && !several || !path.contains([',', ';', ' '])
    };
    let rest: Vec<&&str> = lines.iter().filter(|line| !whole(line)).collect();
    if rest.is_empty() {
        // Paths alone: nothing in them separates anything, except quotes around them.
        return if lines.iter().any(|line| line.starts_with('"')) {
            b','
        } else {
            b'\t'
        };
    }
    for delimiter in [',', ';'] {
        if rest.iter().all(|line| line.contains(delimiter)) {
            return delimiter as u8;
        }
    }
    if rest
        .iter()
        .any(|line| line.contains(',') || line.starts_with('"'))
    {
        b','
    } else {
        b' '
    }
}

/// The fields of a record. Between spaces a path may itself have spaces: the label is what follows the
/// last.
fn fields(record: &csv::StringRecord, delimiter: u8) -> Vec<String> {
    if delimiter != b' ' {
        return record.iter().map(str::to_owned).collect();
    }
    let line = record.iter().collect::<Vec<_>>().join(" ");
    let line = line.trim();
    if has_image_ending(Path::new(line)) {
        return vec![line.to_owned()];
    }
    match line.rsplit_once(' ') {
        Some((path, label)) => vec![path.trim_end().to_owned(), label.to_owned()],
        None => vec![line.to_owned()],
    }
}

/// The columns that a header line names; `None` if the line is none.
fn header(
    fields: &[String],
    columns: &Columns,
    folder: &Path,
) -> Result<Option<(usize, Option<usize>)>, String> {
    let names: Vec<String> = fields
        .iter()
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let at = |known: &[&str]| {
        known
            .iter()
            .find_map(|known| names.iter().position(|name| name == known))
    };
    let named = |column: &Option<String>| match column {
        Some(name) if name.parse::<usize>().is_err() => {
            match names
                .iter()
                .position(|found| *found == name.to_ascii_lowercase())
            {
                Some(at) => Ok(Some(at)),
                None => Err(format!(
                    "no column {name:?}; the header has {}",
                    fields.join(", ")
                )),
            }
        }
        _ => Ok(None),
    };
    let (path, label) = (named(&columns.path)?, named(&columns.label)?);
    let is_file = fields.iter().any(|field| {
        has_image_ending(Path::new(field.trim())) || folder.join(field.trim()).is_file()
    });
    let known = at(&PATH_NAMES).is_some() && !is_file;
    if path.is_none() && label.is_none() && !known {
        return Ok(None);
    }
    let (path_number, label_number) = numbers(columns, fields)?;
    let path = path.or_else(|| {
        if columns.path.is_some() {
            None
        } else {
            at(&PATH_NAMES)
        }
    });
    // Who names the path's column alone wants no labels.
    let named_one = columns.path.is_some() || columns.label.is_some();
    let label = label.or_else(|| if named_one { None } else { at(&LABEL_NAMES) });
    let label_number = columns.label.as_ref().and(label_number);
    Ok(Some((path.unwrap_or(path_number), label.or(label_number))))
}

/// The columns of a list without a header: those that are asked for by number, or the first and, if
/// there is one, the second.
fn numbers(columns: &Columns, fields: &[String]) -> Result<(usize, Option<usize>), String> {
    let number = |column: &Option<String>| match column {
        None => Ok(None),
        Some(name) => match name.parse::<usize>() {
            Ok(number) if number >= 1 => Ok(Some(number - 1)),
            Ok(_) => Err("columns are counted from 1".to_owned()),
            Err(_) => Ok(None),
        },
    };
    let path = number(&columns.path)?.unwrap_or(0);
    let label = match number(&columns.label)? {
        Some(label) => Some(label),
        None if columns.path.is_some() => None,
        None => (fields.len() > 1).then_some(1),
    };
    Ok((path, label))
}

/// A path of Windows as this system has it, unless there is a file of just this name.
fn portable(file: &str, folder: &Path) -> String {
    if !file.contains('\\') || cfg!(windows) || folder.join(file).is_file() {
        return file.to_owned();
    }
    file.replace('\\', "/")
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

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn notes(&self) -> &[Skipped] {
        &self.notes
    }

    fn stamp(&self, index: usize) -> u128 {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match self.files.get(index) {
            Some((file, label)) => stamp_file(&folder.join(file), *label, None),
            None => 0,
        }
    }
}
