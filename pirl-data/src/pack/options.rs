use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pirl_core::{SettingError, check};

use super::Skipped;
use crate::DataError;
use crate::decode::MAX_PIXELS;

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
    /// What images become whose format is not packed ([`OtherFormat`](crate::OtherFormat)); default
    /// PNG, which keeps every pixel.
    pub reencode: Reencode,
    /// Leave out images whose bytes are those of an earlier one; default false: they are counted.
    pub dedupe: bool,
    /// Images with more pixels than this are left out; default 100 million, the most that a pack can
    /// hold: larger ones must shrink.
    pub max_pixels: usize,
    /// Fail at the first image or object that would be left out, rather than leave it out; default
    /// false.
    pub strict: bool,
    /// Stop soon after this becomes true, keeping the shards that are complete; default `None`.
    pub stop: Option<Arc<AtomicBool>>,
}

/// A format that images are encoded in anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reencode {
    /// PNG, lossless.
    #[default]
    Png,
    /// JPEG of [`PackOptions::quality`], 95 without one: a fraction of the size, and quicker to load.
    Jpeg,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            shard_bytes: 1 << 30,
            resize_shorter: None,
            quality: None,
            reencode: Reencode::default(),
            dedupe: false,
            max_pixels: MAX_PIXELS,
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
        let pixels = self.max_pixels;
        check("max_pixels", pixels, pixels > 0, "must be at least 1")?;
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
