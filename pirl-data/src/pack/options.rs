use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pirl_core::{SettingError, check};

use super::Skipped;
use crate::DataError;
use crate::config::check_channels;
use crate::decode::MAX_PIXELS;

/// How [`pack`](super::pack) writes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// A shard is closed before its samples exceed this many bytes; default 1 GiB. A sample larger
    /// than that has a shard to itself.
    pub shard_bytes: u64,
    /// Shrink images whose shorter side exceeds this many pixels, antialiased, and encode them
    /// again (JPEG of [`quality`](Self::quality), PNG lossless, WebP as [`reencode`](Self::reencode) says);
    /// default `None`: no image changes.
    pub resize_shorter: Option<u32>,
    /// Encode every JPEG again with this quality, 1 to 100, and with colours at half the resolution,
    /// as Pillow does; default `None`: only those that shrink are, with quality 95, and the bytes of
    /// all others are kept as they are.
    pub quality: Option<u8>,
    /// What images become whose format is not packed ([`OtherFormat`](crate::OtherFormat)), and WebP. Default
    /// `None`: WebP is packed as it is, unless it shrinks or is animated; what cannot be packed as it is
    /// becomes PNG, which keeps every pixel.
    pub reencode: Option<Reencode>,
    /// Leave out images whose bytes are those of an earlier one; default false: they are counted.
    pub dedupe: bool,
    /// Images with more pixels than this are left out; default 100 million, the most that a pack can
    /// hold: larger ones must shrink.
    pub max_pixels: usize,
    /// Channels of the images, 1 to [`Image::MAX_CHANNELS`](crate::Image::MAX_CHANNELS); default 3, red, green and blue. With any other
    /// number every image is packed as [`Encoding::Planes`](crate::Encoding::Planes), with the channels that
    /// its file has: a TIFF of so many bands, or of so many grey pages of one size; grey, with and without
    /// alpha; RGB with alpha. For 1, colours become grey. Images with others are left out.
    pub channels: usize,
    /// How values of more than 8 bits become 8; default their upper 8 bits.
    pub depth: Depth,
    /// Fail at the first image or object that would be left out, rather than leave it out; default
    /// false.
    pub strict: bool,
    /// Stop soon after this becomes true, keeping the shards that are complete; default `None`.
    pub stop: Option<Arc<AtomicBool>>,
}

/// How values of more than 8 bits become 8.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Depth {
    /// The upper 8 bits. Signed and floating-point values have none: such images are left out.
    #[default]
    Upper,
    /// Each channel of each image from its own least value, which becomes 0, to its greatest, 255.
    Image,
    /// From `least`, which becomes 0, to `most`, 255, rounded; what lies beyond is cut off.
    Range {
        /// The least value.
        least: f64,
        /// The greatest.
        most: f64,
    },
}

impl FromStr for Depth {
    type Err = SettingError;

    /// `upper`, `image`, or two numbers such as `0..10000`.
    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "upper" => return Ok(Self::Upper),
            "image" => return Ok(Self::Image),
            _ => {}
        }
        let ends = text.split_once("..");
        let ends = ends.and_then(|(least, most)| Some((least.parse().ok()?, most.parse().ok()?)));
        match ends {
            Some((least, most)) if f64::is_finite(most - least) && least < most => {
                Ok(Self::Range { least, most })
            }
            _ => {
                let expected =
                    "must be upper, image, or two numbers with the least first, such as 0..10000";
                Err(SettingError::new("range", text, expected))
            }
        }
    }
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
            reencode: None,
            dedupe: false,
            max_pixels: MAX_PIXELS,
            channels: 3,
            depth: Depth::default(),
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
        check_channels(self.channels)?;
        let jpeg = self.quality.is_some() || self.reencode == Some(Reencode::Jpeg);
        check(
            "channels",
            self.channels,
            self.channels == 3 || !jpeg,
            "must be 3 for images that become JPEGs",
        )
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
