//! JPEG XL, by jxl-oxide.

use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageResult, Limits};
use jxl_oxide::integration::JxlDecoder;
use jxl_oxide::{AllocTracker, JxlImage, JxlThreadPool};

/// How many times the bytes of its pixels an image may take while it is decoded: values are numbers of 32 bits then,
/// and filters have another copy of them.
const WORKING_TIMES: u64 = 12;

/// What reading headers may take beside the bytes of the file.
const HEADERS: usize = 1 << 20;

/// A JPEG XL image all of whose data is here; of an animation the first frame. It is upright: its own header says
/// how, which the decoder does, and Exif data do not count (ISO/IEC 18181-2).
pub(super) struct Jxl<'a>(JxlDecoder<Cursor<&'a [u8]>>);

/// # Errors
/// When the header is damaged, or the image ends before its time: the decoder would show what there is of it.
pub(super) fn open(bytes: &[u8]) -> Result<Jxl<'_>, String> {
    // A part of the image cannot be longer than the file, whatever its header says: it would be reserved.
    let tracker = AllocTracker::with_limit(bytes.len() + HEADERS);
    // Images are decoded beside each other, not in parts.
    let builder = JxlImage::builder().pool(JxlThreadPool::none());
    let image = builder.alloc_tracker(tracker).read(bytes);
    if !image.map_err(|error| error.to_string())?.is_loading_done() {
        let count = bytes.len();
        return Err(format!(
            "truncated: its {count} bytes end before the image does"
        ));
    }
    JxlDecoder::with_thread_pool(Cursor::new(bytes), JxlThreadPool::none())
        .map(Jxl)
        .map_err(|error| error.to_string())
}

impl ImageDecoder for Jxl<'_> {
    fn dimensions(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn color_type(&self) -> ColorType {
        self.0.color_type()
    }

    fn read_image(self, buffer: &mut [u8]) -> ImageResult<()> {
        self.0.read_image(buffer)
    }

    fn read_image_boxed(self: Box<Self>, buffer: &mut [u8]) -> ImageResult<()> {
        self.0.read_image(buffer)
    }

    fn set_limits(&mut self, mut limits: Limits) -> ImageResult<()> {
        let more = WORKING_TIMES.saturating_mul(self.total_bytes());
        limits.max_alloc = limits.max_alloc.map(|bytes| bytes.saturating_add(more));
        self.0.set_limits(limits)
    }
}
