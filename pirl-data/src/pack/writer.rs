use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::open_shard::{OpenShard, write_header};
use super::partial::{Partial, State};
use super::prepare::Prepared;
use super::schema::{self, Description, Extent, Fingerprint};
use super::shard::Shard;
use super::{PackOptions, PackReport, Skipped, Tally};
use crate::source::shown_ending;
use crate::{DataError, Encoding, RawSample, Source};

/// A sample that others may repeat.
struct Seen {
    name: String,
    label: Option<u32>,
}

/// Writes samples in order, shard after shard, into a [`Partial`] folder until all are there.
pub(super) struct Writer {
    stem: PathBuf,
    source: String,
    class_names: Vec<String>,
    shard_bytes: u64,
    reserved: usize,
    fingerprint: Fingerprint,
    /// The encoding of all samples so far.
    encoding: Option<Encoding>,
    /// Whether the samples so far have their objects annotated.
    annotated: Option<bool>,
    samples: u64,
    closed: Vec<Extent>,
    open: Option<OpenShard>,
    /// Of all samples so far; `shards` and `stamp` are set on saving.
    state: State,
    /// Of the classes and of all samples so far.
    stamp: Xxh3,
    /// The samples so far by the hash of their bytes.
    seen: HashMap<u128, Seen>,
    /// Whether those that were seen before are left out.
    dedupe: bool,
    partial: Partial,
}

impl Writer {
    /// Begins a pack, or resumes after the complete shards of an interrupted packing.
    pub(super) fn open(
        source: &dyn Source,
        output: &Path,
        options: &PackOptions,
    ) -> Result<Self, DataError> {
        let stem = schema::stem_of(output);
        let class_names = source.class_names().to_vec();
        let description = source.describe();
        let work = format!(
            "{} images and {} classes of {description}, shorter side {:?}, quality {:?}, other formats \
             as {:?}, at most {} pixels, {} channels, depth {:?}, shards of {} bytes, dedupe {}, strict {}",
            source.len(),
            class_names.len(),
            options.resize_shorter,
            options.quality,
            options.reencode,
            options.max_pixels,
            options.channels,
            options.depth,
            options.shard_bytes,
            options.dedupe,
            options.strict
        );
        let (partial, state) = Partial::open(&stem, &work)?;
        let mut writer = Self {
            reserved: schema::reserved(&class_names, &description),
            fingerprint: Fingerprint::new(&class_names),
            source: description,
            stem,
            class_names,
            shard_bytes: options.shard_bytes,
            encoding: None,
            annotated: None,
            samples: 0,
            closed: Vec::new(),
            open: None,
            state: State {
                work,
                shards: 0,
                done: 0,
                stamp: String::new(),
                skipped: Vec::new(),
                notes: Vec::new(),
                tally: Tally::default(),
            },
            stamp: Xxh3::new(),
            seen: HashMap::new(),
            dedupe: options.dedupe,
            partial,
        };
        for name in &writer.class_names {
            writer.stamp.update(name.as_bytes());
            writer.stamp.update(&[0]);
        }
        if let Some(state) = state {
            writer.go_on(source, state)?;
        }
        // At once, so that an unwritable output is found before hours of reading.
        writer.open = Some(writer.open_shard()?);
        Ok(writer)
    }

    /// Takes over complete shards; their samples are read once for the fingerprint.
    fn go_on(&mut self, source: &dyn Source, state: State) -> Result<(), DataError> {
        (0..state.done).for_each(|index| self.stamp.update(&source.stamp(index).to_le_bytes()));
        if self.stamp_digits() != state.stamp {
            return Err(self.shards_error(format!(
                "the source has changed since this packing was interrupted: the names, labels, objects \
                 or files of its first {} images, or the classes, are others; remove the folder \
                 .partial of this name to begin anew",
                state.done
            )));
        }
        for number in 0..state.shards {
            let (shard, description, _) = Shard::open(&self.partial.shard(number))?;
            let annotated = shard.has_objects();
            for index in 0..shard.samples() {
                let bytes = shard.sample(index).unwrap_or_default();
                let encoding = crate::decode::of_sample(bytes, description.encoding);
                let (label, objects) = (shard.label(index), shard.objects(index));
                let number = || format!("image {} of the pack", self.samples + index as u64);
                let seen = Seen {
                    name: shard.name(index).map_or_else(number, str::to_owned),
                    label,
                };
                self.seen.entry(xxh3_128(bytes)).or_insert(seen);
                self.fingerprint
                    .sample(encoding, label, objects.as_ref(), bytes);
            }
            // That of the last shard is that of all samples before, too.
            self.encoding = Some(description.encoding);
            self.annotated = Some(annotated);
            self.samples += shard.samples() as u64;
            self.closed.push(shard.extent());
        }
        self.state = state;
        Ok(())
    }

    /// Samples of the source that were packed or skipped.
    pub(super) fn done(&self) -> usize {
        self.state.done
    }

    /// Notes that the next sample of the source is left out.
    pub(super) fn skip(&mut self, stamp: u128, skipped: Skipped) {
        self.stamp.update(&stamp.to_le_bytes());
        self.state.done += 1;
        self.state.skipped.push(skipped);
    }

    /// Adds the next sample of the source, unless it is to be left out as a duplicate.
    pub(super) fn add(&mut self, stamp: u128, prepared: Prepared<'_>) -> Result<(), DataError> {
        let Prepared {
            sample,
            came,
            size,
            left_out,
            notes,
        } = prepared;
        let hash = xxh3_128(&sample.bytes);
        if let Some(first) = self.seen.get(&hash) {
            let tally = &mut self.state.tally;
            tally.duplicates += 1;
            let otherwise = first.label != sample.label;
            tally.duplicates_labelled_otherwise += usize::from(otherwise);
            if self.dedupe {
                let label = if otherwise {
                    ", with another label"
                } else {
                    ""
                };
                let reason = format!("its bytes are those of {:?}{label}", first.name);
                let name = sample.name;
                self.skip(stamp, Skipped { name, reason });
                return Ok(());
            }
        }
        self.write(&sample)?;
        self.stamp.update(&stamp.to_le_bytes());
        let name = match self.dedupe {
            true => sample.name.clone(),
            false => String::new(), // never shown
        };
        let label = sample.label;
        self.seen.entry(hash).or_insert(Seen { name, label });
        let tally = &mut self.state.tally;
        *tally.formats.entry(came.to_string()).or_default() += 1;
        if !matches!(came, Encoding::Raw { .. }) {
            let ending = shown_ending(Path::new(&sample.name));
            *tally.endings.entry(ending).or_default() += 1;
        }
        tally.reencoded += usize::from(came != sample.encoding);
        tally.size(size);
        if let Some(label) = sample.label {
            *tally.per_class.entry(label).or_default() += 1;
        }
        for label in sample.objects.iter().flat_map(|objects| &objects.labels) {
            *tally.objects_per_class.entry(*label).or_default() += 1;
        }
        self.state.done += 1;
        self.state.skipped.extend(left_out);
        self.state.notes.extend(notes);
        Ok(())
    }

    fn stamp_digits(&self) -> String {
        format!("{:032x}", self.stamp.digest128())
    }

    fn write(&mut self, sample: &RawSample<'_>) -> Result<(), DataError> {
        let size = sample.bytes.len() as u64;
        if let Some(open) = &self.open
            && open.bytes() > 0
            && open.bytes().saturating_add(size) > self.shard_bytes
        {
            self.close_shard()?;
            if self.closed.len() as u64 >= schema::MAX_SHARDS - 1 {
                return Err(self.shards_error(format!(
                    "{} bytes a shard would make {} shards or more; raise shard_bytes",
                    self.shard_bytes,
                    schema::MAX_SHARDS
                )));
            }
        }
        self.check_label(sample)?;
        self.check_objects(sample)?;
        self.annotated = Some(sample.objects.is_some());
        self.encoding = Some(self.join_encoding(sample)?);
        self.fingerprint.sample(
            sample.encoding,
            sample.label,
            sample.objects.as_ref(),
            &sample.bytes,
        );
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_shard()?,
        };
        open.add(sample).map_err(self.write_error())?;
        self.open = Some(open);
        self.samples += 1;
        Ok(())
    }

    fn open_shard(&self) -> Result<OpenShard, DataError> {
        let path = self.partial.shard(self.closed.len() as u64);
        OpenShard::create(path, self.reserved).map_err(self.write_error())
    }

    fn write_error(&self) -> impl FnOnce(std::io::Error) -> DataError {
        DataError::io("write", schema::shard_path(&self.stem, 0, 1))
    }

    fn check_label(&self, sample: &RawSample<'_>) -> Result<(), DataError> {
        let classes = self.class_names.len();
        match sample.label {
            None if classes == 0 || sample.objects.is_some() => Ok(()),
            Some(label) if (label as usize) < classes => Ok(()),
            label => Err(self.shards_error(format!(
                "{} has label {label:?}, but there are {classes} classes",
                sample.name
            ))),
        }
    }

    fn check_objects(&self, sample: &RawSample<'_>) -> Result<(), DataError> {
        let wrong = |reason: String| Err(self.shards_error(format!("{}: {reason}", sample.name)));
        if self
            .annotated
            .is_some_and(|before| before != sample.objects.is_some())
        {
            return wrong("some images have their objects annotated, some have not".to_owned());
        }
        let Some(objects) = &sample.objects else {
            return Ok(());
        };
        if sample.label.is_some() {
            return wrong(
                "it has a label and objects, but a pack keeps only one of the two".to_owned(),
            );
        }
        let classes = self.class_names.len();
        match objects
            .labels
            .iter()
            .find(|&&label| label as usize >= classes)
        {
            Some(label) => wrong(format!(
                "an object has label {label}, but there are {classes} classes"
            )),
            None => Ok(()),
        }
    }

    fn join_encoding(&self, sample: &RawSample<'_>) -> Result<Encoding, DataError> {
        match (self.encoding, sample.encoding) {
            (None, first) => Ok(first),
            (Some(before), this) if before == this => Ok(this),
            (Some(before), this @ Encoding::Raw { .. })
            | (Some(before @ Encoding::Raw { .. }), this) => Err(self.shards_error(format!(
                "{} is {this}, those before it are {before}; a pack of raw images has one size",
                sample.name
            ))),
            (Some(_), _) => Ok(Encoding::Mixed),
        }
    }

    fn shards_error(&self, reason: String) -> DataError {
        DataError::Shards {
            path: self.stem.clone(),
            reason,
        }
    }

    /// Completes the open shard, so that a later packing can go on after it.
    fn close_shard(&mut self) -> Result<(), DataError> {
        let (Some(open), Some(encoding)) = (self.open.take(), self.encoding) else {
            return Ok(());
        };
        if open.is_empty() {
            return Ok(());
        }
        // What all shards have in common is known at the end only; this much makes it readable.
        let so_far = self.description(encoding, schema::MAX_SHARDS);
        let extent = open
            .close(&so_far, self.closed.len() as u64)
            .map_err(self.write_error())?;
        self.closed.push(extent);
        self.state.shards = self.closed.len() as u64;
        self.state.stamp = self.stamp_digits();
        self.partial.save(&self.state)
    }

    fn description(&self, encoding: Encoding, shards: u64) -> Description {
        Description {
            encoding,
            class_names: self.class_names.clone(),
            source: self.source.clone(),
            fingerprint: self.fingerprint.finish(),
            samples: self.samples,
            shards,
        }
    }

    /// Completes the headers, brings everything to the disk, and only then gives the files their
    /// names.
    pub(super) fn finish(mut self) -> Result<PackReport, DataError> {
        let Some(encoding) = self.encoding else {
            return Err(DataError::nothing(&self.stem, &self.state.skipped));
        };
        self.close_shard()?;
        let description = self.description(encoding, self.closed.len() as u64);
        let mut bytes = 0;
        for (number, extent) in (0..).zip(&self.closed) {
            let path = self.partial.shard(number);
            bytes += write_header(&path, &description, number, *extent, self.reserved)
                .map_err(self.write_error())?;
        }
        let shards = self.rename(description.shards)?;
        self.partial.finish();
        Ok(PackReport {
            packed: description.samples as usize,
            resumed: 0,
            skipped: self.state.skipped,
            notes: self.state.notes,
            tally: self.state.tally,
            passed_over: BTreeMap::new(),
            class_names: Vec::new(),
            shards,
            bytes,
            encoding,
            fingerprint: description.fingerprint,
        })
    }

    /// Moves the complete files to the output, in place of a pack that was there; all or none.
    fn rename(&self, count: u64) -> Result<Vec<PathBuf>, DataError> {
        let old = schema::existing_shards(&self.stem)?;
        let mut shards = Vec::new();
        for number in 0..count {
            let path = schema::shard_path(&self.stem, number, count);
            if let Err(error) = fs::rename(self.partial.shard(number), &path) {
                for (number, written) in (0..).zip(&shards) {
                    let _ = fs::rename(written, self.partial.shard(number));
                }
                return Err(DataError::io("write", path)(error));
            }
            shards.push(path);
        }
        for path in old.iter().filter(|path| !shards.contains(path)) {
            fs::remove_file(path).map_err(DataError::io("remove", path))?;
        }
        // The names are on the disk once their folder is; not every system can sync one.
        if let Some(folder) = shards.first().and_then(|path| path.parent()) {
            let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(shards)
    }
}
