use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::schema::{self, Description, Extent};
use crate::{Objects, RawSample};

/// Bytes that are collected before they are written; what is larger goes to the file as it is.
const BUFFER: usize = 1 << 16;
/// Bytes after which what was written is brought to the disk.
const FLUSH: usize = 1 << 24;

/// A shard that samples are added to. Samples are written to the file at once, after space for the
/// header; offsets, labels, names and objects are kept here until it is closed.
pub(super) struct OpenShard {
    path: PathBuf,
    file: BufWriter<File>,
    flusher: Flusher,
    reserved: usize,
    /// Where each sample begins, and where the last ends.
    offsets: Vec<u64>,
    labels: Vec<i64>,
    /// The names of the samples, one after the other, and where each begins and the last ends.
    names: String,
    name_offsets: Vec<u64>,
    /// Where the objects of each sample begin, and where those of the last end; only the
    /// first 0 where no objects are annotated.
    box_offsets: Vec<u64>,
    objects: Objects,
}

impl OpenShard {
    pub(super) fn create(path: PathBuf, reserved: usize) -> io::Result<Self> {
        let file = File::create(&path)?;
        let flusher = Flusher::start(file.try_clone()?)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        file.seek(SeekFrom::Start(reserved as u64))?;
        Ok(Self {
            path,
            file,
            flusher,
            reserved,
            offsets: vec![0],
            labels: Vec::new(),
            names: String::new(),
            name_offsets: vec![0],
            box_offsets: vec![0],
            objects: Objects::default(),
        })
    }

    /// Bytes of the samples so far.
    pub(super) fn bytes(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.offsets.len() < 2
    }

    pub(super) fn add(&mut self, sample: &RawSample<'_>) -> io::Result<()> {
        self.file.write_all(&sample.bytes)?;
        self.flusher.wrote(sample.bytes.len());
        self.offsets.push(self.bytes() + sample.bytes.len() as u64);
        self.labels.extend(sample.label.map(i64::from));
        self.names.push_str(&sample.name);
        self.name_offsets.push(self.names.len() as u64);
        if let Some(objects) = &sample.objects {
            for (bounds, label, difficult) in objects.iter() {
                self.objects.push(bounds, label, difficult);
            }
            self.box_offsets.push(self.objects.len() as u64);
        }
        Ok(())
    }

    /// Writes what follows the samples, and the header of shard `number`, and syncs the file.
    pub(super) fn close(mut self, description: &Description, number: u64) -> io::Result<Extent> {
        let end = self.bytes();
        let annotated = self.box_offsets.len() == self.offsets.len();
        let extent = Extent {
            bytes: end.next_multiple_of(8),
            samples: self.offsets.len() as u64 - 1,
            labelled: !self.labels.is_empty(),
            names: Some(self.names.len() as u64),
            objects: annotated.then_some(self.objects.len() as u64),
        };
        let padding = (extent.bytes - end) as usize;
        self.file.write_all(&[0; 8][..padding])?;
        for offset in &self.offsets {
            self.file.write_all(&offset.to_le_bytes())?;
        }
        for label in &self.labels {
            self.file.write_all(&label.to_le_bytes())?;
        }
        for offset in &self.name_offsets {
            self.file.write_all(&offset.to_le_bytes())?;
        }
        if annotated {
            for offset in &self.box_offsets {
                self.file.write_all(&offset.to_le_bytes())?;
            }
            for label in &self.objects.labels {
                self.file.write_all(&i64::from(*label).to_le_bytes())?;
            }
            for side in self.objects.boxes.as_flattened() {
                self.file.write_all(&side.to_le_bytes())?;
            }
            for difficult in &self.objects.difficult {
                self.file.write_all(&[u8::from(*difficult)])?;
            }
        }
        self.file.write_all(self.names.as_bytes())?;
        self.file.flush()?;
        drop(self.file);
        self.flusher.stop()?;
        write_header(&self.path, description, number, extent, self.reserved)?;
        Ok(extent)
    }
}

/// Brings a file to the disk in parts while it is written, so that little is left to do once it is complete.
struct Flusher {
    /// Written since it was last asked for.
    bytes: usize,
    ask: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flusher {
    fn start(file: File) -> io::Result<Self> {
        let (ask, asked) = bounded(1);
        let flush = move || asked.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().spawn(flush)?;
        Ok(Self {
            bytes: 0,
            ask,
            thread,
        })
    }

    fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= FLUSH {
            self.bytes = 0;
            // It may still be at the last part, or have failed, which `stop` reports.
            let _ = self.ask.try_send(());
        }
    }

    /// # Errors
    /// That of any part: the system tells each error once, so syncing the complete file would not show it again.
    fn stop(self) -> io::Result<()> {
        drop(self.ask);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread that syncs the file has ended")))
    }
}

/// Puts the header at the beginning of a shard, syncs the file, and returns its length.
pub(super) fn write_header(
    path: &Path,
    description: &Description,
    number: u64,
    extent: Extent,
    reserved: usize,
) -> io::Result<u64> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&schema::header(description, number, extent, reserved))?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}
