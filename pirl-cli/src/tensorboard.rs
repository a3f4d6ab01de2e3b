//! TensorBoard event files: TFRecord frames around hand-encoded `tensorflow.Event` messages.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// An open event file.
pub(crate) struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Starts a new event file in `folder` for a run that has done `done` steps. TensorBoard then
    /// forgets later points of earlier files.
    pub(crate) fn create(folder: &Path, done: u64) -> Result<Self> {
        let now = seconds() as u64;
        let mut attempt = 0;
        let (path, file) = loop {
            // The seconds come first: TensorBoard reads files in the order of their names.
            let name = format!(
                "events.out.tfevents.{now:010}.pirl.{}.{attempt}",
                std::process::id()
            );
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot write {}", path.display()));
                }
            }
        };
        let mut writer = Self { path, file };
        writer.write(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        if done > 0 {
            // session_log { status: START }
            writer.write(&event(done, &bytes_field(7, &varint_field(1, 1))))?;
        }
        Ok(writer)
    }

    /// Adds one point to each of the named curves.
    pub(crate) fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(field_key(2, 5));
            entry.extend(value.to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.write(&event(step, &bytes_field(5, &summary)))
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        self.file
            .write_all(&frame(message))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn seconds() -> f64 {
    // A clock before 1970 dates events to 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// `Event { wall_time = 1, step = 2, .. }`.
fn event(step: u64, what: &[u8]) -> Vec<u8> {
    let mut message = vec![field_key(1, 1)];
    message.extend(seconds().to_le_bytes());
    message.extend(varint_field(2, step));
    message.extend(what);
    message
}

/// Length, its checksum, the message, its checksum.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked_crc(message).to_le_bytes());
    record
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a bit at a time: events are few and short.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Key of a protobuf field below 16: its number and wire type.
fn field_key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    let mut field = vec![field_key(number, 0)];
    field.extend(varint(value));
    field
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![field_key(number, 2)];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_standard_check_string() {
        // RFC 3720, appendix B.4, and the check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn varints() {
        assert_eq!(varint(1), [1]);
        assert_eq!(varint(300), [0xac, 2]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }

    #[test]
    fn frames_follow_one_another_to_the_end_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), 7).unwrap();
        board.scalars(8, &[("loss", 0.5), ("lr", 0.1)]).unwrap();
        let path = board.path.clone();
        drop(board);
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut messages) = (bytes.as_slice(), Vec::new());
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let length = u64::from_le_bytes(head[..8].try_into().unwrap());
            let (message, tail) = tail.split_at(length as usize);
            assert_eq!(head[8..], masked_crc(&head[..8]).to_le_bytes());
            assert_eq!(tail[..4], masked_crc(message).to_le_bytes());
            messages.push(message);
            rest = &tail[4..];
        }
        assert!(rest.is_empty());
        assert_eq!(messages.len(), 3);
        let contains = |message: &[u8], part: &[u8]| message.windows(part.len()).any(|w| w == part);
        assert!(contains(messages[0], b"brain.Event:2"));
        assert!(contains(messages[1], &[0x3a, 2, 8, 1]));
        assert!(contains(messages[2], b"loss\x15\x00\x00\x00\x3f"));
    }
}
