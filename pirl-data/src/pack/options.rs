use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::{DataError, Encoding};

/// How [`pack`](super::pack) writes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// A shard is closed before its samples exceed this many bytes; default 1 GiB. A sample larger
    /// than that has a shard to itself.
    pub shard_bytes: u64,
    /// Shrink images whose shorter side exceeds this many pixels, antialiased, and encode them
    /// again (JPEG of [`quality`](Self::quality), PNG lossless); default `None`: no image changes.
    pub resize_shorter: Option<u32>,
    /// Encode every JPEG again with this quality, 1 to 100, and with colours at half the resolution,
    /// as Pillow does; default `None`: only those that shrink are, with quality 95, and the bytes of
    /// all others are kept as they are.
    pub quality: Option<u8>,
    /// Fail at the first image that does not decode, or object whose annotation is broken, rather
    /// than skip it; default false.
    pub strict: bool,
    /// Stop soon after this becomes true, keeping the shards that are complete; default `None`.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            shard_bytes: 1 << 30,
            resize_shorter: None,
            quality: None,
            strict: false,
            stop: None,
        }
    }
}

impl PackOptions {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let bytes = self.shard_bytes;
        check("shard_bytes", bytes, bytes > 0, "must be at least 1")?;
        if let Some(side) = self.resize_shorter {
            check("resize_shorter", side, side > 0, "must be at least 1")?;
        }
        if let Some(quality) = self.quality {
            let fits = (1..=100).contains(&quality);
            check("quality", quality, fits, "must lie between 1 and 100")?;
        }
        Ok(())
    }

    pub(super) fn stopped(&self) -> bool {
        let stop = self.stop.as_ref();
        stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// With `strict`, what would be left out is an error.
    pub(super) fn allow(&self, left_out: &[Skipped]) -> Result<(), DataError> {
        match left_out.first() {
            Some(Skipped { name, reason }) if self.strict => Err(DataError::Annotation {
                name: name.clone(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// What [`pack`](super::pack) wrote and what it left out.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Images packed.
    pub packed: usize,
    /// Images of the source that an interrupted packing had already packed or skipped.
    pub resumed: usize,
    /// What was left out: first what the source had skipped ([`Source::skipped`](crate::Source::skipped)),
    /// then images that do not decode and objects whose boxes do not fit their image, in its order.
    pub skipped: Vec<Skipped>,
    /// The files written, in order.
    pub shards: Vec<PathBuf>,
    /// Bytes of all files together.
    pub bytes: u64,
    /// How samples are encoded.
    pub encoding: Encoding,
    /// The content fingerprint, 32 hexadecimal digits.
    pub fingerprint: String,
}

/// An image, or an object in one, that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name in the source.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}
