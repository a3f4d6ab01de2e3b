//! The markers of a JPEG, walked before it is decoded: for what the decoder does not notice (the end is
//! missing, a restart marker is), and for what libjpeg reads and the decoder does not, or otherwise.
//!
//! Numbers are those of ITU-T T.81, annex B; what libjpeg does is said in its `jdapimin.c`
//! (`default_decompress_parms`) and, of Huffman tables, `jstdhuff.c`.

use std::borrow::Cow;
use std::ops::Range;

/// Where the colour transform stands in an Adobe segment, from the first byte of its marker.
const ADOBE_TRANSFORM: usize = 2 + 2 + 11;

/// The bytes as the decoder needs them: as they are, or, where libjpeg reads what the decoder does not,
/// a copy that both read alike.
///
/// # Errors
/// When the image is cut off, data between restart markers is missing, or it is of a kind that is
/// decoded wrongly.
pub(super) fn mended(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let header = Header::read(bytes)?;
    header.check_scans(bytes)?;
    header.mended(bytes)
}

/// What no Huffman code of a JPEG begins with (T.81, annex C: none is of ones alone): 48 bits of it, which is
/// more than a code (16 bits) and the number behind it (15) have, so that a decoder that goes on reading
/// comes upon them; and no more than jpeg-decoder has read ahead when it asks for the next marker (56, less
/// the 7 with which a byte is filled up).
const ONES: [u8; 12] = [0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0xFF, 0];

/// A copy of a mended sequential JPEG of one scan, with [`ONES`] wherever entropy-coded data end: a decoder that
/// goes on with zeros where data are missing fails instead. `None` for any other JPEG.
pub(super) fn guarded(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = Header::read(bytes).ok()?;
    let frame = header.frame.as_ref()?;
    let (scan, start) = segment(bytes, header.scan)?;
    let (marker, end) = next_marker(bytes, start)?;
    let whole = usize::from(*scan.first()?) == frame.components.len();
    if frame.kind > 1 || !whole || marker != 0xD9 {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut done = 0;
    let mut guard = |upto: usize| {
        let mut part = &bytes[done..upto];
        while let [rest @ .., 0xFF] = part {
            part = rest; // a fill byte
        }
        out.extend_from_slice(part);
        out.extend_from_slice(&ONES);
        done = upto;
    };
    for place in memchr::memchr_iter(0xFF, &bytes[start..end]) {
        if let Some(0xD0..=0xD7) = bytes.get(start + place + 1) {
            guard(start + place);
        }
    }
    guard(end);
    out.extend_from_slice(&[0xFF, 0xD9]);
    Some(out)
}

/// As [`mended`] for who reads the header alone: what follows it is not looked at.
///
/// # Errors
/// When the bytes end within the header.
pub(super) fn mended_header(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    Header::read(bytes)?.mended(bytes)
}

/// What stands before the first scan.
#[derive(Default)]
struct Header {
    /// The segments, marker and all.
    segments: Vec<Range<usize>>,
    /// Whether bytes that belong to none stand between them.
    junk: bool,
    /// Where the first start-of-scan marker is.
    scan: usize,
    jfif: bool,
    huffman: bool,
    /// The place and the value of the Adobe segment's colour transform.
    adobe: Option<(usize, u8)>,
    frame: Option<Frame>,
    restart_interval: usize,
}

struct Frame {
    /// The last digit of the marker: 0 and 1 are sequential, 2 progressive.
    kind: u8,
    width: usize,
    height: usize,
    /// Identifier, horizontal and vertical sampling factor.
    components: Vec<(u8, usize, usize)>,
}

fn truncated(bytes: &[u8]) -> String {
    format!(
        "truncated: its {} bytes end before the image does",
        bytes.len()
    )
}

/// The next marker from `at` on, and where it is; escaped bytes, fill bytes and restarts are none.
fn next_marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let rest = bytes.get(at..)?;
    memchr::memchr_iter(0xFF, rest).find_map(|place| match rest.get(place + 1)? {
        0x00 | 0xFF | 0xD0..=0xD7 => None,
        marker => Some((*marker, at + place)),
    })
}

/// The bytes of the segment whose marker is at `at`, without marker and length, and where it ends.
fn segment(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let length = usize::from(u16::from_be_bytes(*bytes.get(at + 2..)?.first_chunk()?));
    let end = at + 2 + length.max(2);
    Some((bytes.get(at + 4..end)?, end))
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let cut = || truncated(bytes);
        if !bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            return Err("no start-of-image marker".to_owned());
        }
        let mut header = Self::default();
        let mut at = 2;
        loop {
            let (marker, place) = next_marker(bytes, at).ok_or_else(cut)?;
            header.junk |= bytes[at..place].iter().any(|byte| *byte != 0xFF);
            match marker {
                0xD9 => return Err("it ends before its first scan".to_owned()),
                // Markers without a segment.
                0x01 | 0xD8 => {
                    at = place + 2;
                    continue;
                }
                0xDA => {
                    header.scan = place;
                    return Ok(header);
                }
                _ => {}
            }
            let (body, end) = segment(bytes, place).ok_or_else(cut)?;
            header.note(marker, body, place);
            header.segments.push(place..end);
            at = end;
        }
    }

    fn note(&mut self, marker: u8, body: &[u8], place: usize) {
        match (marker, body) {
            (0xE0, [b'J', b'F', b'I', b'F', 0, ..]) => self.jfif = true,
            (
                0xEE,
                [
                    b'A',
                    b'd',
                    b'o',
                    b'b',
                    b'e',
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    transform,
                    ..,
                ],
            ) => {
                self.adobe = Some((place + ADOBE_TRANSFORM, *transform));
            }
            (0xC4, _) => self.huffman = true,
            (0xDD, [high, low, ..]) => {
                self.restart_interval = usize::from(u16::from_be_bytes([*high, *low]));
            }
            (0xC0..=0xC2, [_, h0, h1, w0, w1, _, components @ ..]) => {
                let number = |bytes: [u8; 2]| usize::from(u16::from_be_bytes(bytes));
                let of = |part: &[u8; 3]| {
                    (
                        part[0],
                        usize::from(part[1] >> 4),
                        usize::from(part[1] & 15),
                    )
                };
                self.frame = Some(Frame {
                    kind: marker & 15,
                    width: number([*w0, *w1]),
                    height: number([*h0, *h1]),
                    components: components.as_chunks().0.iter().map(of).collect(),
                });
            }
            _ => {}
        }
    }

    /// The colour transform that libjpeg takes where the decoder would take another.
    ///
    /// # Errors
    /// When the decoder cannot be told.
    fn transform(&self) -> Result<Option<u8>, String> {
        let components = self
            .frame
            .as_ref()
            .map_or(&[][..], |frame| &frame.components);
        let [first, second, third] = components else {
            return Ok(None);
        };
        let transform = match self.adobe {
            Some((_, 0)) if !self.jfif => Some(0),
            Some(_) => Some(1),
            None => self.jfif.then_some(1),
        };
        // The decoder takes letters for the truth, whatever the segments say.
        if [first.0, second.0, third.0] == *b"RGB" {
            return match transform {
                Some(1) => {
                    Err("its components are called R, G and B, its header says YCbCr".to_owned())
                }
                _ => Ok(None),
            };
        }
        Ok(match self.adobe {
            Some((_, written)) => transform.filter(|transform| *transform != written),
            None => None,
        })
    }

    /// A copy with what is missing, without what does not belong, if there is anything of this.
    fn mended<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let transform = self.transform()?;
        if self.huffman && !self.junk && transform.is_none() {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut whole = vec![0xFF, 0xD8];
        for range in &self.segments {
            let start = whole.len();
            whole.extend_from_slice(&bytes[range.clone()]);
            if let (Some(transform), Some((place, _))) = (transform, self.adobe)
                && range.contains(&place)
                && let Some(byte) = whole.get_mut(start + place - range.start)
            {
                *byte = transform;
            }
        }
        if !self.huffman {
            standard_tables(&mut whole);
        }
        whole.extend_from_slice(&bytes[self.scan..]);
        Ok(Cow::Owned(whole))
    }

    /// Walks the scans up to the end of the image.
    fn check_scans(&self, bytes: &[u8]) -> Result<(), String> {
        let cut = || truncated(bytes);
        let mut interval = self.restart_interval;
        let mut at = self.scan;
        loop {
            let (marker, place) = next_marker(bytes, at).ok_or_else(cut)?;
            match marker {
                0xD9 => return Ok(()),
                0x01 | 0xD8 => at = place + 2,
                0xDA => {
                    let (body, end) = segment(bytes, place).ok_or_else(cut)?;
                    at = self.check_scan(bytes, body, end, interval)?;
                }
                _ => {
                    let (body, end) = segment(bytes, place).ok_or_else(cut)?;
                    if let (0xDD, [high, low, ..]) = (marker, body) {
                        interval = usize::from(u16::from_be_bytes([*high, *low]));
                    }
                    at = end;
                }
            }
        }
    }

    /// Counts the restart markers of the scan whose data begin at `start`; returns where they end.
    fn check_scan(
        &self,
        bytes: &[u8],
        scan: &[u8],
        start: usize,
        interval: usize,
    ) -> Result<usize, String> {
        let (_, end) = next_marker(bytes, start).ok_or_else(|| truncated(bytes))?;
        let Some(frame) = &self.frame else {
            return Ok(end); // of a kind that the decoder refuses by name
        };
        let many = usize::from(scan.first().copied().unwrap_or(0));
        let named = scan.get(1..1 + 2 * many).unwrap_or_default();
        let (named, _) = named.as_chunks::<2>();
        let found = |id: u8| frame.components.iter().find(|component| component.0 == id);
        let of_scan: Vec<_> = named.iter().filter_map(|pair| found(pair[0])).collect();
        let whole = of_scan.len() == frame.components.len();
        let even = frame
            .components
            .windows(2)
            .all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2));
        if frame.kind < 2 && !whole && !even {
            return Err(
                "its colours are in scans of their own and at another resolution, which the decoder \
                 cannot put together; save it as an ordinary JPEG"
                    .to_owned(),
            );
        }
        if interval == 0 {
            return Ok(end);
        }
        let data = &bytes[start..end];
        let mut restarts = 0_usize;
        for place in memchr::memchr_iter(0xFF, data) {
            if let Some(marker @ 0xD0..=0xD7) = data.get(place + 1) {
                if usize::from(marker & 7) != restarts % 8 {
                    return Err(format!(
                        "damaged: restart marker {} where number {} of its scan is due",
                        marker & 7,
                        restarts % 8
                    ));
                }
                restarts += 1;
            }
        }
        let due = frame
            .units(&of_scan)
            .map(|units| units.div_ceil(interval).saturating_sub(1));
        match due {
            Some(due) if restarts < due => Err(format!(
                "damaged: {restarts} restart markers in a scan that has {due}"
            )),
            _ => Ok(end),
        }
    }
}

impl Frame {
    /// How many units (T.81, A.2) a scan of these components has; `None` if that is not in the header.
    fn units(&self, components: &[&(u8, usize, usize)]) -> Option<usize> {
        let most = |side: fn(&(u8, usize, usize)) -> usize| self.components.iter().map(side).max();
        let (across, down) = (most(|c| c.1)?, most(|c| c.2)?);
        if self.height == 0 || across == 0 || down == 0 {
            return None;
        }
        match components {
            [(_, wide, high)] => {
                let columns = (self.width * wide).div_ceil(across).div_ceil(8);
                Some(columns * (self.height * high).div_ceil(down).div_ceil(8))
            }
            [_, _, ..] => Some(self.width.div_ceil(8 * across) * self.height.div_ceil(8 * down)),
            [] => None,
        }
    }
}

/// Appends the tables of T.81, annex K.3, which a frame of a Motion-JPEG film leaves out.
fn standard_tables(out: &mut Vec<u8>) {
    let (dc, ac) = ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [AC_LUMA, AC_CHROMA]);
    let counts: [(u8, [u8; 16], &[u8]); 4] = [
        (0x00, [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &dc),
        (
            0x10,
            [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D],
            &ac[0],
        ),
        (0x01, [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &dc),
        (
            0x11,
            [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
            &ac[1],
        ),
    ];
    let length: usize = counts.iter().map(|(_, _, values)| 17 + values.len()).sum();
    out.extend_from_slice(&[0xFF, 0xC4]);
    out.extend_from_slice(&(2 + length as u16).to_be_bytes());
    for (class, counts, values) in counts {
        out.push(class);
        out.extend_from_slice(&counts);
        out.extend_from_slice(values);
    }
}

/// Table K.5.
#[rustfmt::skip]
const AC_LUMA: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3,
    0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3,
    0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2,
    0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];

/// Table K.6.
#[rustfmt::skip]
const AC_CHROMA: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1,
    0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A,
    0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA,
    0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA,
    0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];
