//! From a source to a pack: samples are prepared on all threads and written in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender, bounded};
use pirl_core::SettingError;

use super::prepare::{Prepared, Workspace, prepare};
use super::writer::Writer;
use super::{PackOptions, PackReport, Skipped};
use crate::{DataError, Source};

/// Samples a thread takes at once: handing over each by itself would cost more than a small one.
const CHUNK: usize = 4;
/// Chunks a thread may be ahead of the writer.
const AHEAD: usize = 2;

/// Packs every image of `source` that decodes into `output`, a name with or without `.safetensors`.
///
/// `progress` is called with samples done and samples in all. Every image is decoded once, on as
/// many threads as Rayon's pool has, to be sure that training will not meet a broken one; the files
/// are the same whatever their number. Memory is bounded by one decoded image and a few encoded
/// samples a thread, whatever the size of the set. A pack already at `output` is replaced, and only
/// when the new one is complete and on the disk.
///
/// When it stops before the end, for whatever reason, complete shards stay in the folder
/// `OUTPUT.partial`, and the same call goes on after them; the files come out as if it had never
/// stopped. It fails if the names, labels, objects or files dealt with so far, or the classes, have
/// changed in the meantime, or with other options.
///
/// # Errors
/// [`DataError::Nothing`] when no image is left to pack; [`DataError::Decode`] and
/// [`DataError::Annotation`] with `strict`, the latter also when the lists of
/// [`Objects`](crate::Objects) differ in length; [`DataError::Io`] when reading or writing fails;
/// [`DataError::Shards`] when samples cannot be in one pack, or `OUTPUT.partial` is of another
/// packing; [`DataError::Setting`]; [`DataError::Stopped`]. What was at `output` before is
/// still there then.
pub fn pack(
    source: &dyn Source,
    output: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<PackReport, DataError> {
    options.check()?;
    if output.file_name().is_none() {
        return Err(SettingError::new("output", output.display(), "must name a file").into());
    }
    options.allow(source.skipped())?;
    let mut writer = Writer::open(source, output, options)?;
    let total = source.len();
    let resumed = writer.done();
    progress(resumed, total);
    in_order(source, resumed, options, &mut |(stamp, result)| {
        match result {
            Ok(prepared) => {
                options.allow(&prepared.left_out)?;
                writer.add(stamp, prepared)?;
            }
            Err(DataError::Decode { name, reason }) if !options.strict => {
                writer.skip(stamp, Skipped { name, reason });
            }
            Err(error) => return Err(error),
        }
        progress(writer.done(), total);
        if options.stopped() {
            return Err(DataError::Stopped {
                doing: "packing",
                done: writer.done(),
                total,
            });
        }
        Ok(())
    })?;
    let mut report = match writer.finish() {
        Ok(report) => report,
        Err(DataError::Nothing { path, skipped }) => {
            let skipped = [source.skipped(), &skipped].concat();
            return Err(DataError::Nothing { path, skipped });
        }
        Err(error) => return Err(error),
    };
    report.resumed = resumed;
    report
        .skipped
        .splice(0..0, source.skipped().iter().cloned());
    report.notes.splice(0..0, source.notes().iter().cloned());
    report.passed_over = source.passed_over();
    report.class_names = source.class_names().to_vec();
    Ok(report)
}

/// The stamp of a sample, and the sample.
type Outcome<'a> = (u128, Result<Prepared<'a>, DataError>);

/// Prepares the samples from `first` on, on all threads, and hands them over in their order.
fn in_order<'a>(
    source: &'a dyn Source,
    first: usize,
    options: &PackOptions,
    take: &mut dyn FnMut(Outcome<'a>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let threads = rayon::current_num_threads();
    std::thread::scope(|scope| {
        let (send, tasks) = bounded::<(Range<usize>, Sender<Vec<Outcome<'a>>>)>(threads * AHEAD);
        for _ in 0..threads {
            let tasks = tasks.clone();
            scope.spawn(move || {
                let mut workspace = Workspace::default();
                for (chunk, reply) in tasks {
                    let prepared = chunk.map(|index| {
                        let stamp = source.stamp(index);
                        (stamp, prepare(source, index, options, &mut workspace))
                    });
                    // The receiver is gone if an earlier sample was an error.
                    let _ = reply.send(prepared.collect());
                }
            });
        }
        drop(tasks);
        let mut ahead = VecDeque::<Receiver<Vec<Outcome<'a>>>>::new();
        let mut next = |ahead: &mut VecDeque<Receiver<Vec<Outcome<'a>>>>| {
            let Some(result) = ahead.pop_front() else {
                return Ok(());
            };
            let lost = |_| DataError::Worker {
                index: None,
                reason: "a thread that prepares samples has ended".to_owned(),
            };
            result
                .recv()
                .map_err(lost)?
                .into_iter()
                .try_for_each(&mut *take)
        };
        for start in (first..source.len()).step_by(CHUNK) {
            if ahead.len() >= threads * AHEAD {
                next(&mut ahead)?;
            }
            let (reply, result) = bounded(1);
            let chunk = start..source.len().min(start + CHUNK);
            if send.send((chunk, reply)).is_err() {
                break; // no thread is left, which the next receive reports
            }
            ahead.push_back(result);
        }
        while !ahead.is_empty() {
            next(&mut ahead)?;
        }
        Ok(())
    })
}
