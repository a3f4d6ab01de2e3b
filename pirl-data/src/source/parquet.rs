use std::borrow::Cow;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ::parquet::basic::Type;
use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::ByteArray;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::ColumnDescriptor;
use walkdir::WalkDir;

use super::files::image_bytes;
use super::list::{Columns, LABEL_NAMES};
use super::{RawSample, Source, labels, stamp_file};
use crate::{DataError, Skipped};

const FORMAT: &str = "Parquet";
/// Bytes of a group of rows, which is decoded as a whole.
const MOST_OF_GROUP: i64 = 1 << 30;
/// Bytes of the groups that are kept, unless two have more: threads are some rows ahead of each other.
const KEPT: usize = 512 << 20;
/// Parts of public sets, by which their files are named.
const PARTS: [&str; 6] = ["train", "test", "validation", "val", "valid", "dev"];

/// Parquet files with a column of images, as the data sets of Hugging Face are stored: a struct of `bytes` and
/// `path`, or bytes alone.
///
/// The column is the one that the metadata of Hugging Face call an image, or, without them, the first of
/// either kind; labels are its class labels, with their names, or a column called `label` or the like. A few
/// groups of rows at a time are in memory.
pub struct Parquet {
    path: PathBuf,
    files: Vec<PathBuf>,
    groups: Vec<Group>,
    /// Where each sample lies, and its label.
    samples: Vec<Sample>,
    class_names: Vec<String>,
    image: Column,
    skipped: Vec<Skipped>,
    /// The groups read last, the newest last.
    cache: Mutex<Vec<(u32, Arc<Rows>)>>,
}

/// A group of rows of a file.
#[derive(Clone, Copy, Debug)]
struct Group {
    file: usize,
    number: usize,
    /// Its first row, counted from the beginning of the file.
    first: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    group: u32,
    row: u32,
    label: Option<u32>,
}

/// The leaves of the column of images.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    bytes: String,
    path: Option<String>,
}

/// What a group of rows holds of images.
struct Rows {
    bytes: Vec<Option<ByteArray>>,
    paths: Vec<Option<ByteArray>>,
}

impl Rows {
    fn size(&self) -> usize {
        let values = self.bytes.iter().chain(&self.paths).flatten();
        values.map(ByteArray::len).sum()
    }
}

impl Parquet {
    /// Opens a file, or all in a folder and below it in order of their paths; with `split` those alone whose
    /// names begin with it or that lie in a folder of this name.
    ///
    /// Of `columns`, `path` is that of the images.
    ///
    /// # Errors
    /// [`DataError::Io`] when they cannot be read, [`DataError::Empty`] when there are none,
    /// [`DataError::Format`] of one that is damaged, without a column of images, with several of labels, or
    /// with a group of rows of more than 1 GiB; [`DataError::Setting`] when parts such as train and test lie
    /// beside each other and none is asked for; [`DataError::Label`] for a label without a class.
    pub fn open(
        path: impl AsRef<Path>,
        split: Option<&str>,
        columns: &Columns,
    ) -> Result<Self, DataError> {
        let path = path.as_ref();
        let files = files(path, split)?;
        let mut source = Self {
            path: path.to_owned(),
            files,
            groups: Vec::new(),
            samples: Vec::new(),
            class_names: Vec::new(),
            image: Column {
                bytes: String::new(),
                path: None,
            },
            skipped: Vec::new(),
            cache: Mutex::new(Vec::new()),
        };
        let mut given = Vec::new();
        let mut layout: Option<Layout> = None;
        for file in 0..source.files.len() {
            let path = source.files[file].clone();
            let read = || source.walk(file, columns, layout.as_ref(), &mut given);
            let found = guarded(read).map_err(wrong(&path))?;
            match &layout {
                Some(first) if *first != found => {
                    return Err(wrong(&path)(format!(
                        "its columns or classes are not those of {}",
                        source.files[0].display()
                    )));
                }
                Some(_) => {}
                None => {
                    source.image = found.image.clone();
                    layout = Some(found);
                }
            }
        }
        let names = layout.and_then(|layout| layout.class_names);
        source.number(given, names)?;
        if source.samples.is_empty() {
            return Err(DataError::Empty {
                path: path.to_owned(),
                expected: "rows with an image",
            });
        }
        Ok(source)
    }

    /// Notes the rows of a file and their labels.
    fn walk(
        &mut self,
        file: usize,
        columns: &Columns,
        known: Option<&Layout>,
        given: &mut Vec<Option<String>>,
    ) -> Result<Layout, String> {
        let reader = open(&self.files[file])?;
        let layout = Layout::of(&reader, columns)?;
        if known.is_some_and(|known| *known != layout) {
            return Ok(layout);
        }
        let metadata = reader.metadata();
        let mut first = 0;
        for number in 0..metadata.num_row_groups() {
            let group = metadata.row_group(number);
            let bytes = group.total_byte_size();
            let rows = usize::try_from(group.num_rows()).map_err(|error| error.to_string())?;
            if bytes > MOST_OF_GROUP {
                return Err(format!(
                    "its group of rows {number} has {} MiB, {} are read; write it with smaller groups \
                     (row_group_size = 100)",
                    bytes >> 20,
                    MOST_OF_GROUP >> 20
                ));
            }
            let labels = match &layout.label {
                Some(label) => read_labels(&reader, number, label, rows)?,
                None => vec![None; rows],
            };
            let place = u32::try_from(self.groups.len()).map_err(|error| error.to_string())?;
            for (row, label) in labels.into_iter().enumerate() {
                self.samples.push(Sample {
                    group: place,
                    row: u32::try_from(row).map_err(|error| error.to_string())?,
                    label: None,
                });
                given.push(label);
            }
            self.groups.push(Group {
                file,
                number,
                first,
            });
            first += rows;
        }
        Ok(layout)
    }

    /// Gives samples their labels; where some have one, those without are left out.
    fn number(
        &mut self,
        given: Vec<Option<String>>,
        names: Option<Vec<String>>,
    ) -> Result<(), DataError> {
        // What is not known is -1 in sets of Hugging Face.
        let given: Vec<_> = given
            .into_iter()
            .map(|label| label.filter(|label| label != "-1"))
            .collect();
        let (numbered, found) = labels::number(&given)
            .map_err(|(place, reason)| wrong(&self.path)(format!("row {place}: {reason}")))?;
        let labelled = numbered.iter().any(Option::is_some);
        self.class_names = match names {
            Some(names) if labelled => names,
            _ => found,
        };
        let classes = self.class_names.len();
        let mut kept = Vec::with_capacity(self.samples.len());
        let samples = std::mem::take(&mut self.samples);
        for (index, (mut sample, label)) in samples.into_iter().zip(numbered).enumerate() {
            if let Some(label) = label.filter(|label| *label as usize >= classes) {
                return Err(DataError::Label {
                    path: self.path.clone(),
                    index,
                    label: label.into(),
                    classes,
                });
            }
            if labelled && label.is_none() {
                let name = self.name(&sample, None);
                let reason = "it has no label, but others have".to_owned();
                self.skipped.push(Skipped { name, reason });
            } else {
                sample.label = label;
                kept.push(sample);
            }
        }
        self.samples = kept;
        Ok(())
    }

    fn name(&self, sample: &Sample, path: Option<&ByteArray>) -> String {
        let group = self.groups.get(sample.group as usize);
        let row = group.map_or(0, |group| group.first) + sample.row as usize;
        let file = group.and_then(|group| self.files.get(group.file));
        let file = file.and_then(|file| file.file_name()).unwrap_or_default();
        let place = format!("row {row} of {}", file.display());
        match path.and_then(|path| std::str::from_utf8(path.data()).ok()) {
            Some(path) if !path.is_empty() => format!("{place}: {path}"),
            _ => place,
        }
    }

    /// The images of a group of rows. Neighbouring samples are asked for one after the other, so few groups
    /// are read twice.
    fn rows(&self, number: u32) -> Result<Arc<Rows>, DataError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rows)) = cache.iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(rows));
        }
        let group = self.groups.get(number as usize).ok_or(DataError::Index {
            index: number as usize,
            len: self.groups.len(),
        })?;
        let path = &self.files[group.file];
        let read = || -> Result<Rows, String> {
            let reader = open(path)?;
            let count = reader.metadata().row_group(group.number).num_rows();
            let count = usize::try_from(count).map_err(|error| error.to_string())?;
            Ok(Rows {
                bytes: read_bytes(&reader, group.number, &self.image.bytes, count)?,
                paths: match &self.image.path {
                    Some(column) => read_bytes(&reader, group.number, column, count)?,
                    None => Vec::new(),
                },
            })
        };
        let rows = Arc::new(guarded(read).map_err(wrong(path))?);
        cache.push((number, Arc::clone(&rows)));
        while cache.len() > 2 && cache.iter().map(|(_, rows)| rows.size()).sum::<usize>() > KEPT {
            cache.remove(0);
        }
        Ok(rows)
    }
}

/// What the files of a set have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    image: Column,
    label: Option<String>,
    class_names: Option<Vec<String>>,
}

impl Layout {
    fn of(reader: &SerializedFileReader<File>, columns: &Columns) -> Result<Self, String> {
        let metadata = reader.metadata().file_metadata();
        let features = metadata
            .key_value_metadata()
            .and_then(|pairs| pairs.iter().find(|pair| pair.key == "huggingface"))
            .and_then(|pair| serde_json::from_str::<serde_json::Value>(pair.value.as_deref()?).ok())
            .and_then(|json| json.pointer("/info/features").cloned());
        let features = features.as_ref().and_then(|features| features.as_object());
        let of_type = |kind: &str| -> Vec<&str> {
            let all = features.into_iter().flatten();
            all.filter(|(_, feature)| feature["_type"] == kind)
                .map(|(name, _)| name.as_str())
                .collect()
        };
        let schema = metadata.schema_descr();
        let leaves: Vec<&ColumnDescriptor> = schema.columns().iter().map(|leaf| &**leaf).collect();
        let image = image_column(&leaves, columns.path.as_deref(), &of_type("Image"))?;
        let label = label_column(&leaves, columns, &of_type("ClassLabel"))?;
        let names = label
            .as_deref()
            .and_then(|label| features?.get(label)?.get("names"));
        let class_names = names.and_then(|names| serde_json::from_value(names.clone()).ok());
        Ok(Self {
            image,
            label,
            class_names,
        })
    }
}

fn image_column(
    leaves: &[&ColumnDescriptor],
    wanted: Option<&str>,
    images: &[&str],
) -> Result<Column, String> {
    let holds_bytes = |leaf: &&&ColumnDescriptor| {
        leaf.physical_type() == Type::BYTE_ARRAY && leaf.max_rep_level() == 0
    };
    let leaf = |path: String| leaves.iter().find(|leaf| leaf.path().string() == path);
    let column = |name: &str| -> Option<Column> {
        let of_struct = leaf(format!("{name}.bytes")).filter(holds_bytes);
        let bytes = of_struct.or_else(|| leaf(name.to_owned()).filter(holds_bytes))?;
        let path = leaf(format!("{name}.path")).filter(holds_bytes);
        Some(Column {
            bytes: bytes.path().string(),
            path: path.map(|leaf| leaf.path().string()),
        })
    };
    let shown = || {
        let names: Vec<String> = leaves.iter().map(|leaf| leaf.path().string()).collect();
        names.join(", ")
    };
    if let Some(name) = wanted {
        let missing = || format!("no column {name:?} of images; it has {}", shown());
        return column(name).ok_or_else(missing);
    }
    let known = images.iter().find_map(|name| column(name));
    let of_struct = || {
        let mut leaves = leaves.iter();
        leaves.find_map(|leaf| match leaf.path().parts() {
            [name, bytes] if bytes == "bytes" => column(name),
            _ => None,
        })
    };
    // Text is bytes, too, but says so.
    let of_bytes = || {
        let plain = leaves.iter().find(|leaf| {
            holds_bytes(leaf)
                && leaf.path().parts().len() == 1
                && leaf.logical_type_ref().is_none()
                && leaf.converted_type() == ::parquet::basic::ConvertedType::NONE
        })?;
        column(&plain.path().string())
    };
    known.or_else(of_struct).or_else(of_bytes).ok_or_else(|| {
        format!(
            "no column of images, a struct of bytes and path, or bytes; it has {} (--columns \
             path=NAME chooses one)",
            shown()
        )
    })
}

fn label_column(
    leaves: &[&ColumnDescriptor],
    columns: &Columns,
    class_labels: &[&str],
) -> Result<Option<String>, String> {
    let fits = |leaf: &&&ColumnDescriptor| {
        let kind = leaf.physical_type();
        let of_labels = matches!(kind, Type::INT32 | Type::INT64 | Type::BYTE_ARRAY);
        of_labels && leaf.max_rep_level() == 0
    };
    let has = |name: &str| {
        let leaf = leaves.iter().find(|leaf| leaf.path().string() == name);
        leaf.filter(fits).is_some()
    };
    if let Some(name) = &columns.label {
        return match has(name) {
            true => Ok(Some(name.clone())),
            false => Err(format!("no column {name:?} of integers or text for labels")),
        };
    }
    if columns.path.is_some() {
        return Ok(None); // who names the images alone wants no labels
    }
    match class_labels {
        [only] if has(only) => Ok(Some((*only).to_owned())),
        [] => {
            let known = LABEL_NAMES.iter().find(|name| has(name));
            Ok(known.map(|name| (*name).to_owned()))
        }
        [only] => Err(format!("its column {only:?} of labels holds no integers")),
        several => Err(format!(
            "it has several columns of labels, {}: choose one, --columns label={}",
            several.join(", "),
            several[0]
        )),
    }
}

fn files(path: &Path, split: Option<&str>) -> Result<Vec<PathBuf>, DataError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in WalkDir::new(path).follow_links(true) {
        let entry = entry.map_err(|error| {
            let at = error.path().unwrap_or(path).to_owned();
            DataError::io("list", at)(error.into())
        })?;
        let is_parquet = entry
            .path()
            .extension()
            .is_some_and(|ending| ending == "parquet");
        if is_parquet && entry.file_type().is_file() {
            found.push(entry.into_path());
        }
    }
    found.sort();
    let part = |file: &Path| {
        let inside = file.strip_prefix(path).unwrap_or(file);
        let names = inside
            .iter()
            .map(|name| name.to_string_lossy().into_owned());
        names
            .filter_map(|name| {
                let word = name.split(['-', '.', '_']).next().unwrap_or_default();
                Some(word.to_owned()).filter(|word| match split {
                    Some(split) => word == split || name == split,
                    None => PARTS.contains(&word.as_str()),
                })
            })
            .next()
    };
    if split.is_some() {
        found.retain(|file| part(file).is_some());
    } else {
        let mut parts: Vec<String> = found.iter().filter_map(|file| part(file)).collect();
        parts.dedup();
        if let [first, _, ..] = &parts[..] {
            let expected = format!(
                "must be one of {}, whose files lie beside each other (--split {first})",
                parts.join(", ")
            );
            return Err(pirl_core::SettingError::new("split", "absent", expected).into());
        }
    }
    match found.is_empty() {
        true => Err(DataError::Empty {
            path: path.to_owned(),
            expected: "files in .parquet, of the split if one is named",
        }),
        false => Ok(found),
    }
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    SerializedFileReader::new(file).map_err(|error| error.to_string())
}

/// The error of a file.
fn wrong(path: &Path) -> impl Fn(String) -> DataError + use<> {
    let path = path.to_owned();
    move |reason| DataError::Format {
        path: path.clone(),
        format: FORMAT,
        reason,
    }
}

/// The reader panics at some damage.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let damaged = |_| Err("it is damaged".to_owned());
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(damaged)
}

/// The column of a group of rows, and the level at which a value is there.
fn column(
    reader: &SerializedFileReader<File>,
    group: usize,
    name: &str,
) -> Result<(ColumnReader, i16), String> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let place = (0..schema.num_columns()).find(|at| schema.column(*at).path().string() == name);
    let place = place.ok_or_else(|| format!("no column {name}"))?;
    let level = schema.column(place).max_def_level();
    let group = reader
        .get_row_group(group)
        .map_err(|error| error.to_string())?;
    let column = group
        .get_column_reader(place)
        .map_err(|error| error.to_string())?;
    Ok((column, level))
}

/// Reads `rows` values of a column; `None` where there is none.
macro_rules! read_all {
    ($reader:expr, $level:expr, $rows:expr) => {{
        let (mut levels, mut values, mut done) = (Vec::new(), Vec::new(), 0);
        while done < $rows {
            let read = $reader.read_records($rows - done, Some(&mut levels), None, &mut values);
            let (records, _, _) = read.map_err(|error| error.to_string())?;
            if records == 0 {
                return Err(format!("{done} of {} rows", $rows));
            }
            done += records;
        }
        let mut values = values.into_iter();
        let all: Vec<_> = match $level {
            0 => values.map(Some).collect(),
            level => levels
                .iter()
                .map(|found| if *found == level { values.next() } else { None })
                .collect(),
        };
        match all.len() == $rows {
            true => Ok(all),
            false => Err(format!("{} values of {} rows", all.len(), $rows)),
        }
    }};
}

fn read_bytes(
    reader: &SerializedFileReader<File>,
    group: usize,
    name: &str,
    rows: usize,
) -> Result<Vec<Option<ByteArray>>, String> {
    match column(reader, group, name)? {
        (ColumnReader::ByteArrayColumnReader(mut column), level) => read_all!(column, level, rows),
        _ => Err(format!("column {name} holds no bytes")),
    }
}

fn read_labels(
    reader: &SerializedFileReader<File>,
    group: usize,
    name: &str,
    rows: usize,
) -> Result<Vec<Option<String>>, String> {
    fn text<T: ToString>(values: Vec<Option<T>>) -> Vec<Option<String>> {
        let each = values.into_iter();
        each.map(|value| value.map(|value| value.to_string()))
            .collect()
    }
    match column(reader, group, name)? {
        (ColumnReader::Int32ColumnReader(mut column), level) => {
            let values: Result<Vec<Option<i32>>, String> = read_all!(column, level, rows);
            Ok(text(values?))
        }
        (ColumnReader::Int64ColumnReader(mut column), level) => {
            let values: Result<Vec<Option<i64>>, String> = read_all!(column, level, rows);
            Ok(text(values?))
        }
        (ColumnReader::ByteArrayColumnReader(mut column), level) => {
            let values: Result<Vec<Option<ByteArray>>, String> = read_all!(column, level, rows);
            let lossy = |value: ByteArray| String::from_utf8_lossy(value.data()).into_owned();
            Ok(values?.into_iter().map(|value| value.map(lossy)).collect())
        }
        _ => Err(format!("column {name} holds neither integers nor text")),
    }
}

impl Source for Parquet {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let len = self.samples.len();
        let sample = self
            .samples
            .get(index)
            .ok_or(DataError::Index { index, len })?;
        let rows = self.rows(sample.group)?;
        let path = rows.paths.get(sample.row as usize).and_then(Option::as_ref);
        let name = self.name(sample, path);
        match rows.bytes.get(sample.row as usize) {
            Some(Some(bytes)) => image_bytes(Cow::Owned(bytes.data().to_vec()), name, sample.label),
            _ => Err(DataError::Decode {
                name,
                reason: "it holds no bytes of its image".to_owned(),
            }),
        }
    }

    fn describe(&self) -> String {
        format!("parquet {}", self.path.display())
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn stamp(&self, index: usize) -> u128 {
        let found = self.samples.get(index).and_then(|sample| {
            let group = self.groups.get(sample.group as usize)?;
            Some((sample, group, self.files.get(group.file)?))
        });
        found.map_or(0, |(sample, group, file)| {
            let row = (group.first + sample.row as usize) as u128;
            stamp_file(file, sample.label, None).wrapping_add(row)
        })
    }
}
