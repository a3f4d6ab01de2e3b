//! Baseline JPEG of brightness and of colours at half the resolution: the bytes that the jpeg-encoder crate makes of
//! them, in less time, for encoding is most of packing.
//!
//! The crate quantises coefficient by coefficient and asks each whether it is 0. Here eight blocks are transformed
//! side by side in vectors, and a mask says which coefficients are to be coded. Header and tables are the crate's.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use pirl_core::vectorised;

/// Pixels a side of a block.
const SIDE: usize = 8;
/// Values of a block.
const AREA: usize = SIDE * SIDE;
/// Blocks that are transformed together: as many as numbers of 32 bits in a vector of AVX2.
const BLOCKS: usize = 8;

/// Where the coefficients of a block are written, in the order in which they are coded (ITU-T T.81, figure A.6).
const ZIGZAG: [u8; AREA] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One value of each block.
type Lane = [i32; BLOCKS];

/// A plane of pixels, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane<'a> {
    pub(super) pixels: &'a [u8],
    pub(super) width: usize,
    pub(super) height: usize,
}

/// The coefficients of a block in the order in which they are coded, and which of them are not 0.
#[derive(Clone, Debug)]
struct Coded {
    values: [i16; AREA],
    mask: u64,
}

/// Encodes with one quality; keeps its buffers.
#[derive(Debug)]
pub(super) struct JpegEncoder {
    quality: u8,
    /// Up to the coded data; the size is filled in.
    header: Vec<u8>,
    /// Where height and width are.
    size_at: usize,
    /// Of brightness and of colours.
    tables: [Tables; 2],
    /// Two rows of blocks of brightness, one of each colour.
    rows: [Vec<Coded>; 4],
}

#[derive(Clone, Debug)]
struct Tables {
    quantizer: Quantizer,
    dc: [Code; 256],
    ac: [Code; 256],
}

/// A Huffman code: its bits, and how many.
#[derive(Clone, Copy, Debug, Default)]
struct Code {
    bits: u16,
    size: u8,
}

/// Division by multiplication, of coefficients that are scaled up by 8, as jpeg-encoder does it.
#[derive(Clone, Debug)]
struct Quantizer {
    reciprocals: [Lane; AREA],
    corrections: [Lane; AREA],
}

impl JpegEncoder {
    /// # Errors
    /// The crate's.
    pub(super) fn new(quality: u8) -> Result<Self, String> {
        let mut header = Vec::new();
        let mut encoder = Encoder::new(&mut header, quality);
        encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
        let encoded = encoder.encode(&[0; 3], 1, 1, ColorType::Rgb);
        encoded.map_err(|error| error.to_string())?;
        Self::parse(quality, header).ok_or_else(|| "a JPEG header without tables".to_owned())
    }

    pub(super) fn quality(&self) -> u8 {
        self.quality
    }

    /// Takes the tables out of a file.
    fn parse(quality: u8, mut header: Vec<u8>) -> Option<Self> {
        let none = Tables {
            quantizer: Quantizer::new(&[1; AREA]),
            dc: [Code::default(); 256],
            ac: [Code::default(); 256],
        };
        let mut tables = [none.clone(), none];
        let (mut at, mut size_at) = (2, None);
        loop {
            let [0xFF, marker, high, low] = *header.get(at..)?.first_chunk()? else {
                return None;
            };
            let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
            let body = header.get(at + 4..end)?;
            match (marker, body) {
                (0xDB, [number, divisors @ ..]) => {
                    let table = tables.get_mut(usize::from(*number))?;
                    table.quantizer = Quantizer::new(divisors.first_chunk()?);
                }
                (0xC4, [number, codes @ ..]) => {
                    let table = tables.get_mut(usize::from(number & 15))?;
                    let (lengths, values) = codes.split_first_chunk()?;
                    let codes = huffman(lengths, values)?;
                    match number >> 4 {
                        0 => table.dc = codes,
                        _ => table.ac = codes,
                    }
                }
                (0xC0, _) => size_at = Some(at + 5),
                (0xDA, _) => {
                    header.truncate(end);
                    return Some(Self {
                        quality,
                        header,
                        size_at: size_at?,
                        tables,
                        rows: Default::default(),
                    });
                }
                _ => {}
            }
            at = end;
        }
    }

    /// A JPEG of brightness and of two colours of half the sides, rounded up.
    ///
    /// # Errors
    /// When a side is more than a JPEG can have.
    pub(super) fn encode(&mut self, luma: Plane, chroma: [Plane; 2]) -> Result<Vec<u8>, String> {
        let side = |side: usize| {
            let found = u16::try_from(side);
            found.map_err(|_| format!("{side} pixels a side, more than a JPEG can have"))
        };
        let size = [side(luma.height)?, side(luma.width)?].map(u16::to_be_bytes);
        let mut bytes = Vec::with_capacity(self.header.len() + luma.pixels.len() / 2);
        bytes.extend_from_slice(&self.header);
        bytes[self.size_at..self.size_at + 4].copy_from_slice(size.as_flattened());
        let mut writer = BitWriter {
            bytes,
            bits: 0,
            count: 0,
        };
        let units = luma.width.div_ceil(2 * SIDE);
        let [of_luma, of_chroma] = &self.tables;
        let mut before = [0; 3];
        for unit_row in 0..luma.height.div_ceil(2 * SIDE) {
            let [top, bottom, blue, red] = &mut self.rows;
            let y = unit_row * SIDE;
            row_of_blocks(luma, 2 * y, 2 * units, &of_luma.quantizer, top);
            row_of_blocks(luma, 2 * y + SIDE, 2 * units, &of_luma.quantizer, bottom);
            row_of_blocks(chroma[0], y, units, &of_chroma.quantizer, blue);
            row_of_blocks(chroma[1], y, units, &of_chroma.quantizer, red);
            for unit in 0..units {
                for block in [
                    &top[2 * unit],
                    &top[2 * unit + 1],
                    &bottom[2 * unit],
                    &bottom[2 * unit + 1],
                ] {
                    writer.block(block, &mut before[0], of_luma);
                }
                writer.block(&blue[unit], &mut before[1], of_chroma);
                writer.block(&red[unit], &mut before[2], of_chroma);
            }
        }
        Ok(writer.finish())
    }
}

/// The codes by their symbols, from how many there are of each length and the symbols in order (ITU-T T.81, C.2).
fn huffman(lengths: &[u8; 16], values: &[u8]) -> Option<[Code; 256]> {
    let mut codes = [Code::default(); 256];
    let (mut values, mut bits) = (values.iter(), 0_u16);
    for (size, count) in (1..).zip(lengths) {
        for _ in 0..*count {
            codes[usize::from(*values.next()?)] = Code { bits, size };
            bits = bits.wrapping_add(1);
        }
        bits <<= 1;
    }
    Some(codes)
}

impl Quantizer {
    /// The divisors are in the order in which coefficients are coded.
    fn new(divisors: &[u8; AREA]) -> Self {
        let mut quantizer = Self {
            reciprocals: [[0; BLOCKS]; AREA],
            corrections: [[0; BLOCKS]; AREA],
        };
        for (place, divisor) in ZIGZAG.into_iter().zip(divisors) {
            let divisor = 8 * i32::from(*divisor).max(1);
            let (mut reciprocal, rest) = ((1 << 15) / divisor, (1 << 15) % divisor);
            let mut correction = divisor / 2;
            if rest > correction {
                reciprocal += 1;
            } else if rest > 0 {
                correction += 1;
            }
            quantizer.reciprocals[usize::from(place)] = [reciprocal; BLOCKS];
            quantizer.corrections[usize::from(place)] = [correction; BLOCKS];
        }
        quantizer
    }
}

/// The blocks whose first row of pixels is `y`; pixels beyond the edges are those at the edges.
fn row_of_blocks(
    plane: Plane,
    y: usize,
    blocks: usize,
    quantizer: &Quantizer,
    out: &mut Vec<Coded>,
) {
    let empty = Coded {
        values: [0; AREA],
        mask: 0,
    };
    out.resize(blocks.next_multiple_of(BLOCKS), empty);
    for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let x = group * BLOCKS * SIDE;
        let mut rows = [[0; BLOCKS * SIDE]; SIDE];
        for (row, y) in rows.iter_mut().zip(y..) {
            let line = &plane.pixels[y.min(plane.height - 1) * plane.width..][..plane.width];
            let inside = &line[x.min(plane.width - 1)..];
            let count = inside.len().min(row.len());
            row[..count].copy_from_slice(&inside[..count]);
            row[count..].fill(inside[count - 1]);
        }
        transform(&rows, quantizer, out);
    }
}

vectorised! {
    /// The coefficients of blocks that lie side by side.
    fn transform(
        rows: &[[u8; BLOCKS * SIDE]; SIDE],
        quantizer: &Quantizer,
        out: &mut [Coded; BLOCKS],
    ) {
        let mut columns = [[0; BLOCKS * SIDE]; SIDE];
        for x in 0..SIDE {
            for y in 0..SIDE {
                for block in 0..BLOCKS {
                    columns[x][y * BLOCKS + block] = i32::from(rows[y][block * SIDE + x]) - 128;
                }
            }
        }
        let (mut found, mut turned) = ([[0; BLOCKS * SIDE]; SIDE], [[0; BLOCKS * SIDE]; SIDE]);
        cosines::<true>(&columns, &mut found);
        for x in 0..SIDE {
            for y in 0..SIDE {
                turned[y][x * BLOCKS..][..BLOCKS].copy_from_slice(&found[x][y * BLOCKS..][..BLOCKS]);
            }
        }
        cosines::<false>(&turned, &mut found);
        let values = found.as_flattened_mut();
        quantize(values, quantizer);
        let values = values.as_chunks::<BLOCKS>().0;
        let mut masks = [[0; BLOCKS]; 2];
        for place in 0..AREA {
            let coefficients = values[usize::from(ZIGZAG[place])];
            for block in 0..BLOCKS {
                out[block].values[place] = coefficients[block] as i16;
                masks[place / 32][block] |= u32::from(coefficients[block] != 0) << (place % 32);
            }
        }
        for block in 0..BLOCKS {
            out[block].mask = u64::from(masks[0][block]) | u64::from(masks[1][block]) << 32;
        }
    }
}

#[inline(always)]
fn quantize(values: &mut [i32], quantizer: &Quantizer) {
    let reciprocals = quantizer.reciprocals.as_flattened();
    let corrections = quantizer.corrections.as_flattened();
    for ((value, reciprocal), correction) in values.iter_mut().zip(reciprocals).zip(corrections) {
        let size = ((value.abs() + correction) * reciprocal) >> 15;
        *value = if *value < 0 { -size } else { size };
    }
}

/// The cosine transforms of eight values that lie at the same place of eight arrays, as libjpeg's `jfdctint.c` has
/// them: first of rows, whose results keep two more bits, then of columns. All results are scaled up by 8 then.
#[inline(always)]
fn cosines<const ROWS: bool>(
    input: &[[i32; BLOCKS * SIDE]; SIDE],
    output: &mut [[i32; BLOCKS * SIDE]; SIDE],
) {
    for lane in 0..BLOCKS * SIDE {
        let (t0, t7) = ends(input[0][lane], input[7][lane]);
        let (t1, t6) = ends(input[1][lane], input[6][lane]);
        let (t2, t5) = ends(input[2][lane], input[5][lane]);
        let (t3, t4) = ends(input[3][lane], input[4][lane]);

        let (t10, t13) = ends(t0, t3);
        let (t11, t12) = ends(t1, t2);
        output[0][lane] = whole::<ROWS>(t10 + t11);
        output[4][lane] = whole::<ROWS>(t10 - t11);
        let z1 = (t12 + t13) * 4_433;
        output[2][lane] = scaled::<ROWS>(z1 + t13 * 6_270);
        output[6][lane] = scaled::<ROWS>(z1 - t12 * 15_137);

        let z5 = (t4 + t6 + t5 + t7) * 9_633;
        let z1 = (t4 + t7) * -7_373;
        let z2 = (t5 + t6) * -20_995;
        let z3 = (t4 + t6) * -16_069 + z5;
        let z4 = (t5 + t7) * -3_196 + z5;
        output[7][lane] = scaled::<ROWS>(t4 * 2_446 + z1 + z3);
        output[5][lane] = scaled::<ROWS>(t5 * 16_819 + z2 + z4);
        output[3][lane] = scaled::<ROWS>(t6 * 25_172 + z2 + z3);
        output[1][lane] = scaled::<ROWS>(t7 * 12_299 + z1 + z4);
    }
}

#[inline(always)]
fn ends(a: i32, b: i32) -> (i32, i32) {
    (a + b, a - b)
}

/// A sum with the bits that are to be kept.
#[inline(always)]
fn whole<const ROWS: bool>(sum: i32) -> i32 {
    if ROWS { sum << 2 } else { (sum + 2) >> 2 }
}

/// The same of one with 13 bits more.
#[inline(always)]
fn scaled<const ROWS: bool>(sum: i32) -> i32 {
    let shift = if ROWS { 11 } else { 15 };
    (sum + (1 << (shift - 1))) >> shift
}

/// Coded data: bits in the order of their weight, and a 0 after each byte of 255.
struct BitWriter {
    bytes: Vec<u8>,
    /// The last `count` bits, less than 32, are yet to be written.
    bits: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the lowest `size` bits, 27 at most; all others are 0.
    #[inline(always)]
    fn put(&mut self, bits: u32, size: u32) {
        self.bits = self.bits << size | u64::from(bits);
        self.count += size;
        if self.count >= 32 {
            self.count -= 32;
            let word = (self.bits >> self.count) as u32;
            if word & 0x8080_8080 & !word.wrapping_add(0x0101_0101) == 0 {
                self.bytes.extend_from_slice(&word.to_be_bytes());
            } else {
                word.to_be_bytes()
                    .into_iter()
                    .for_each(|byte| self.byte(byte));
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
        if byte == 0xFF {
            self.bytes.push(0);
        }
    }

    /// The code of `symbol` and of how many bits follow, and these: of a negative number those of one less.
    #[inline(always)]
    fn number(&mut self, codes: &[Code; 256], symbol: usize, value: i32, size: u32) {
        let code = codes[symbol & 255];
        let low = ((value + (value >> 31)) as u32) & ((1 << size) - 1);
        self.put(
            u32::from(code.bits) << size | low,
            u32::from(code.size) + size,
        );
    }

    fn block(&mut self, block: &Coded, before: &mut i32, tables: &Tables) {
        let dc = i32::from(block.values[0]);
        let difference = dc - *before;
        *before = dc;
        let size = bits_of(difference);
        self.number(&tables.dc, size as usize, difference, size);
        let (mut left, mut next) = (block.mask & !1, 1);
        while left != 0 {
            let place = left.trailing_zeros();
            left &= left - 1;
            let mut run = place - next;
            next = place + 1;
            while run > 15 {
                self.number(&tables.ac, 0xF0, 0, 0);
                run -= 16;
            }
            let value = i32::from(block.values[place as usize & (AREA - 1)]);
            let size = bits_of(value);
            self.number(&tables.ac, (run << 4 | size) as usize, value, size);
        }
        if next < AREA as u32 {
            self.number(&tables.ac, 0, 0, 0);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.put(0x7F, 7);
        while self.count >= 8 {
            self.count -= 8;
            self.byte((self.bits >> self.count) as u8);
        }
        self.bytes.extend([0xFF, 0xD9]);
        self.bytes
    }
}

/// How many bits a number's size needs.
#[inline(always)]
fn bits_of(value: i32) -> u32 {
    u32::BITS - value.unsigned_abs().leading_zeros()
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ChromaSubsamplingMethod, ImageBuffer, JpegColorType};
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Planes as the crate reads them: whole rows, of which it keeps every other pixel of every other colour row.
    struct Rows<'a>(Plane<'a>, [Plane<'a>; 2]);

    impl ImageBuffer for Rows<'_> {
        fn get_jpeg_color_type(&self) -> JpegColorType {
            JpegColorType::Ycbcr
        }

        fn width(&self) -> u16 {
            self.0.width as u16
        }

        fn height(&self) -> u16 {
            self.0.height as u16
        }

        fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
            let (y, width) = (usize::from(y), self.0.width);
            buffers[0].extend_from_slice(&self.0.pixels[y * width..][..width]);
            for (buffer, plane) in buffers[1..].iter_mut().zip(self.1) {
                let row = &plane.pixels[y / 2 * plane.width..][..plane.width];
                buffer.extend(row.iter().flat_map(|value| [*value; 2]).take(width));
            }
        }
    }

    fn check(encoder: &mut JpegEncoder, (width, height): (usize, usize), noise: i32, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut plane = |width: usize, height: usize| -> Vec<u8> {
            let values = (0..width * height).map(|at| {
                let base =
                    128 + (at % width / 3 * 9 % 90) as i32 - (at / width / 5 * 7 % 80) as i32;
                (base + rng.random_range(-noise..=noise)).clamp(0, 255) as u8
            });
            values.collect()
        };
        let (wide, high) = (width.div_ceil(2), height.div_ceil(2));
        let pixels = [plane(width, height), plane(wide, high), plane(wide, high)];
        let plane = |pixels, width, height| Plane {
            pixels,
            width,
            height,
        };
        let luma = plane(&pixels[0], width, height);
        let chroma = [plane(&pixels[1], wide, high), plane(&pixels[2], wide, high)];
        let mut expected = Vec::new();
        let mut by_crate = Encoder::new(&mut expected, encoder.quality());
        by_crate.set_sampling_factor(SamplingFactor::R_4_2_0);
        by_crate.set_chroma_subsampling_method(ChromaSubsamplingMethod::Nearest);
        by_crate.encode_image(Rows(luma, chroma)).unwrap();
        let found = encoder.encode(luma, chroma).unwrap();
        assert!(
            found == expected,
            "{width} x {height}, quality {}",
            encoder.quality()
        );
    }

    #[test]
    fn every_quality_is_that_of_the_crate() {
        for quality in 1..=100 {
            let mut encoder = JpegEncoder::new(quality).unwrap();
            for noise in [0, 5, 60, 500] {
                check(&mut encoder, (50, 37), noise, u64::from(quality));
            }
        }
    }

    proptest! {
        #[test]
        fn every_size_is_that_of_the_crate(
            width in 1usize..200, height in 1usize..70, noise in 0..300, seed: u64, quality in 1u8..=100
        ) {
            let mut encoder = JpegEncoder::new(quality).unwrap();
            // Twice, for buffers are kept.
            check(&mut encoder, (width, height), noise, seed);
            check(&mut encoder, (height, width), noise, seed);
        }
    }

    #[test]
    fn what_no_jpeg_can_have_is_refused() {
        let plane = |width| Plane {
            pixels: &[],
            width,
            height: 1,
        };
        let error = JpegEncoder::new(90)
            .unwrap()
            .encode(plane(65_536), [plane(32_768); 2])
            .unwrap_err();
        assert_eq!(error, "65536 pixels a side, more than a JPEG can have");
    }
}
