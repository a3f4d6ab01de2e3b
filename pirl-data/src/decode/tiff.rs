//! TIFF files of any number of channels, and of values of more than 8 bits, by the `tiff` crate.

use std::io::Cursor;

use ::tiff::ColorType;
use ::tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use image::metadata::Orientation;

use super::channels::{Channels, Meaning, Stored, Values};
use super::check_size;

/// The image, or `None` for what is better read as other images are: palettes, CMYK, YCbCr, less than 8
/// bits. Of a file of as many grey pages of one size as channels are wanted, each is a channel; otherwise the
/// first page is read.
pub(super) fn read(bytes: &[u8], wanted: Channels) -> Result<Option<Stored>, String> {
    let failed = |error: ::tiff::TiffError| error.to_string();
    let mut limits = Limits::default();
    limits.decoding_buffer_size = wanted.limit.saturating_mul(4);
    let mut decoder = Decoder::new(Cursor::new(bytes))
        .map_err(failed)?
        .with_limits(limits);
    let color = decoder.colortype().map_err(failed)?;
    let meaning = match color {
        ColorType::Gray(_) | ColorType::RGB(_) => Meaning::Colors { alpha: false },
        ColorType::GrayA(_) | ColorType::RGBA(_) => Meaning::Colors { alpha: true },
        ColorType::Multiband { .. } => Meaning::Bands,
        _ => return Ok(None),
    };
    if color.bit_depth() < 8 {
        return Ok(None);
    }
    let (width, height) = decoder.dimensions().map_err(failed)?;
    let (width, height) = (width as usize, height as usize);
    let mut channels = usize::from(color.num_samples());
    let samples = decoder.find_tag_unsigned::<usize>(Tag::SamplesPerPixel);
    let samples = samples.map_err(failed)?.unwrap_or(1);
    if samples != channels {
        return Err(format!(
            "it has {samples} channels, of which {channels} are colours; write them all alike \
             (photometric interpretation \"minisblack\")"
        ));
    }
    let stack = channels == 1 && wanted.channels > 1 && wanted.channels != 3;
    let most = if stack { wanted.channels } else { channels };
    check_size(width, height, wanted.limit / most.max(1))?;
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation);
    let orientation = orientation
        .map_err(failed)?
        .and_then(Orientation::from_exif);
    let mut values = page(&mut decoder, (width, height), channels)?;
    let mut meaning = meaning;
    if stack && decoder.more_images() {
        let mut pages = vec![values];
        while decoder.more_images() && pages.len() <= wanted.channels {
            decoder.next_image().map_err(failed)?;
            let found = decoder.dimensions().map_err(failed)?;
            let found = (found.0 as usize, found.1 as usize);
            if found != (width, height) || decoder.colortype().map_err(failed)? != color {
                return Err(format!(
                    "page {} is not like the first; pages are channels when all are grey and of one size",
                    pages.len() + 1
                ));
            }
            pages.push(page(&mut decoder, (width, height), 1)?);
        }
        if pages.len() != wanted.channels {
            let more = if decoder.more_images() {
                " and more"
            } else {
                ""
            };
            return Err(format!(
                "it has {} grey pages{more}, asked for are {} channels",
                pages.len(),
                wanted.channels
            ));
        }
        channels = pages.len();
        meaning = Meaning::Bands;
        values = together(pages)?;
    }
    Ok(Some(Stored {
        width,
        height,
        channels,
        meaning,
        values,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    }))
}

/// How many channels a file has that are no colours; `None` of any other.
pub(super) fn bands(bytes: &[u8]) -> Option<u16> {
    let color = Decoder::new(Cursor::new(bytes)).ok()?.colortype().ok()?;
    match color {
        ColorType::Multiband { num_samples, .. } => Some(num_samples),
        _ => None,
    }
}

/// The values of the page that the decoder is at, of `width` x `height` pixels of `channels` channels.
fn page(
    decoder: &mut Decoder<Cursor<&[u8]>>,
    (width, height): (usize, usize),
    channels: usize,
) -> Result<Values, String> {
    let failed = |error: ::tiff::TiffError| error.to_string();
    let layout = decoder.image_buffer_layout().map_err(failed)?;
    let area = width * height;
    let values = if layout.planes > 1 && decoder.get_chunk_type() == ChunkType::Tile {
        let planes = (0..channels).map(|plane| tiled_plane(decoder, (width, height), plane));
        together(planes.collect::<Result<_, _>>()?)?
    } else {
        let mut found = DecodingResult::U8(Vec::new());
        decoder.read_image_to_buffer(&mut found).map_err(failed)?;
        let values = Values::from(found);
        match layout.planes > 1 && values.len() == area * channels {
            true => together(values.split(area))?,
            false => values,
        }
    };
    match values.len() == area * channels {
        true => Ok(values),
        false => Err(format!(
            "{} values of {area} pixels with {channels} channels",
            values.len()
        )),
    }
}

/// One of several channels that lie apart, in tiles: `read_image_to_buffer` of tiff 0.11 takes the lowest tiles
/// of all but the first channel for whole ones, and panics.
fn tiled_plane(
    decoder: &mut Decoder<Cursor<&[u8]>>,
    (width, height): (usize, usize),
    plane: usize,
) -> Result<Values, String> {
    let (wide, high) = decoder.chunk_dimensions();
    let (wide, high) = (wide as usize, high as usize);
    if wide == 0 || high == 0 {
        return Err("tiles without pixels".to_owned());
    }
    let (across, down) = (width.div_ceil(wide), height.div_ceil(high));
    let mut out: Option<Values> = None;
    for tile in 0..across * down {
        let number = u32::try_from(plane * across * down + tile).map_err(|e| e.to_string())?;
        let found = decoder
            .read_chunk(number)
            .map_err(|error| error.to_string())?;
        let found = Values::from(found);
        let (left, top) = (tile % across * wide, tile / across * high);
        let columns = wide.min(width - left);
        let rows = high.min(height - top);
        let out = out.get_or_insert_with(|| found.zeros(width * height));
        for row in 0..rows {
            let to = (top + row) * width + left;
            out.copy(to, &found, row * columns, columns)
                .ok_or("a tile with too few pixels")?;
        }
    }
    out.ok_or_else(|| "no tiles".to_owned())
}

impl From<DecodingResult> for Values {
    fn from(found: DecodingResult) -> Self {
        macro_rules! deep {
            ($values:expr, $whole:expr) => {
                Self::Deep {
                    numbers: $values.into_iter().map(|value| value as f32).collect(),
                    whole: $whole,
                }
            };
        }
        match found {
            DecodingResult::U8(values) => Self::Bytes(values),
            DecodingResult::U16(values) => deep!(values, Some(65_536.0)),
            DecodingResult::U32(values) => deep!(values, Some(4_294_967_296.0)),
            DecodingResult::U64(values) => deep!(values, Some(18_446_744_073_709_551_616.0)),
            DecodingResult::I8(values) => deep!(values, None),
            DecodingResult::I16(values) => deep!(values, None),
            DecodingResult::I32(values) => deep!(values, None),
            DecodingResult::I64(values) => deep!(values, None),
            DecodingResult::F16(values) => Self::Deep {
                numbers: values.into_iter().map(|value| value.to_f32()).collect(),
                whole: None,
            },
            DecodingResult::F32(values) => deep!(values, None),
            DecodingResult::F64(values) => deep!(values, None),
        }
    }
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Deep { numbers, .. } => numbers.len(),
        }
    }

    /// As many zeros of the same kind.
    fn zeros(&self, count: usize) -> Self {
        match self {
            Self::Bytes(_) => Self::Bytes(vec![0; count]),
            Self::Deep { whole, .. } => Self::Deep {
                numbers: vec![0.0; count],
                whole: *whole,
            },
        }
    }

    /// Copies `count` values of the same kind; `None` if there are not as many.
    fn copy(&mut self, to: usize, from: &Self, start: usize, count: usize) -> Option<()> {
        match (self, from) {
            (Self::Bytes(out), Self::Bytes(values)) => {
                let values = values.get(start..start + count)?;
                out.get_mut(to..to + count)?.copy_from_slice(values);
            }
            (Self::Deep { numbers: out, .. }, Self::Deep { numbers, .. }) => {
                let values = numbers.get(start..start + count)?;
                out.get_mut(to..to + count)?.copy_from_slice(values);
            }
            _ => return None,
        }
        Some(())
    }

    /// The channels that lie one after the other, of `area` values each.
    fn split(self, area: usize) -> Vec<Self> {
        match self {
            Self::Bytes(values) => {
                let planes = values.chunks(area);
                planes.map(|plane| Self::Bytes(plane.to_vec())).collect()
            }
            Self::Deep { numbers, whole } => {
                let planes = numbers.chunks(area);
                let deep = |plane: &[f32]| Self::Deep {
                    numbers: plane.to_vec(),
                    whole,
                };
                planes.map(deep).collect()
            }
        }
    }
}

/// Channels that lie one after the other, between each other.
fn together(planes: Vec<Values>) -> Result<Values, String> {
    let (count, area) = (planes.len(), planes.first().map_or(0, Values::len));
    let (mut bytes, mut numbers, mut whole) = (Vec::new(), Vec::new(), None);
    for (channel, plane) in planes.into_iter().enumerate() {
        match plane {
            Values::Bytes(values) => {
                bytes.resize(area * count, 0);
                let places = bytes.iter_mut().skip(channel).step_by(count);
                places.zip(values).for_each(|(place, value)| *place = value);
            }
            Values::Deep {
                numbers: values,
                whole: of_plane,
            } => {
                whole = of_plane;
                numbers.resize(area * count, 0.0);
                let places = numbers.iter_mut().skip(channel).step_by(count);
                places.zip(values).for_each(|(place, value)| *place = value);
            }
        }
    }
    match (bytes.is_empty(), numbers.is_empty()) {
        (false, true) => Ok(Values::Bytes(bytes)),
        (true, false) => Ok(Values::Deep { numbers, whole }),
        _ => Err("its pages have values of different kinds".to_owned()),
    }
}
