//! LZW as TIFF has it (TIFF 6.0, section 13): codes of 9 to 12 bits, the highest first, one bit more one code early.
//!
//! Of a photograph a code stands for two bytes or less, so that the time goes into codes: weezl 0.1, which the `tiff`
//! crate uses, takes 2.4 times as long, weezl 0.2 1.9 times (benches/RESULTS.md).

/// Codes of 12 bits.
const CODES: usize = 1 << 12;
const CLEAR: usize = 256;
const END: usize = 257;
/// The first that stands for several bytes.
const FIRST: usize = 258;

/// What a code stands for.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    /// The first eight bytes, the first lowest.
    bytes: u64,
    length: usize,
    /// Where in the output all of it stands, if there are more than eight.
    start: usize,
}

impl Text {
    fn first(self) -> u8 {
        self.bytes as u8
    }
}

/// Decodes one strip after another; keeps its table.
#[derive(Debug)]
pub(super) struct Lzw {
    table: Vec<Text>,
}

impl Lzw {
    pub(super) fn new() -> Self {
        let one = |code: usize| Text {
            bytes: code as u64,
            length: 1,
            start: 0,
        };
        let mut table: Vec<Text> = (0..CLEAR).map(one).collect();
        table.resize(CODES, Text::default());
        Self { table }
    }

    /// Fills `out`; what follows in the data is not looked at, an end code neither, as by libtiff. `None` if they are
    /// damaged or end too soon.
    pub(super) fn decode(&mut self, data: &[u8], out: &mut [u8]) -> Option<()> {
        let table: &mut [Text; CODES] = self.table.first_chunk_mut()?;
        let mut codes = Codes {
            data,
            bits: 0,
            count: 0,
        };
        let (mut width, mut next, mut at) = (9, FIRST, 0);
        let mut before: Option<Text> = None;
        while at < out.len() {
            let code = codes.take(width)?;
            if code == CLEAR {
                (width, next, before) = (9, FIRST, None);
                continue;
            }
            if code == END {
                return None;
            }
            if let Some(before) = before
                && next < CODES
            {
                // The code that is being defined here begins as what was before it.
                let of = if code == next { before } else { table[code] };
                let more = match before.length {
                    length @ 1..8 => u64::from(of.first()) << (8 * length),
                    _ => 0,
                };
                table[next] = Text {
                    bytes: before.bytes | more,
                    length: before.length + 1,
                    start: before.start,
                };
                next += 1;
                if next > (1 << width) - 2 && width < 12 {
                    width += 1;
                }
            }
            if code >= next {
                return None;
            }
            let text = table[code];
            write(out, at, text);
            before = Some(Text { start: at, ..text });
            at += text.length;
        }
        Some(())
    }
}

/// Writes what of a text has room.
#[inline(always)]
fn write(out: &mut [u8], at: usize, text: Text) {
    let bytes = text.bytes.to_le_bytes();
    match out.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        Some(room) => *room = bytes,
        None => {
            let room = &mut out[at..];
            room.copy_from_slice(&bytes[..room.len()]);
        }
    }
    if text.length > 8 {
        let length = text.length.min(out.len() - at);
        if length > 8 {
            // A text that ends with its own first byte reads what was just written.
            out.copy_within(text.start + 8..text.start + length, at + 8);
        }
    }
}

/// Codes from bytes.
struct Codes<'a> {
    data: &'a [u8],
    /// The lowest `count` bits are still to be taken.
    bits: u64,
    count: u32,
}

impl Codes<'_> {
    #[inline(always)]
    fn take(&mut self, width: u32) -> Option<usize> {
        if self.count < width {
            if let Some((four, rest)) = self.data.split_first_chunk() {
                self.bits = self.bits << 32 | u64::from(u32::from_be_bytes(*four));
                (self.count, self.data) = (self.count + 32, rest);
            } else {
                for byte in std::mem::take(&mut self.data) {
                    self.bits = self.bits << 8 | u64::from(*byte);
                    self.count += 8;
                }
            }
        }
        self.count = self.count.checked_sub(width)?;
        Some((self.bits >> self.count) as usize & ((1 << width) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes as an encoder writes them: a bit more once 510, 1,022 and 2,046 are defined.
    fn packed(codes: &[usize]) -> Vec<u8> {
        let (mut width, mut next, mut defines) = (9, FIRST, false);
        let mut bits = Vec::new();
        for code in codes {
            bits.extend((0..width).rev().map(|bit| (code >> bit & 1) as u8));
            match *code {
                CLEAR => (next, defines) = (FIRST, false),
                _ if defines && next < CODES => next += 1,
                _ => defines = true,
            }
            width = match next {
                ..511 => 9,
                511..1_023 => 10,
                1_023..2_047 => 11,
                _ => 12,
            };
        }
        let bytes = bits.chunks(8);
        let byte = |bits: &[u8]| (0..8).fold(0, |byte, at| byte << 1 | bits.get(at).unwrap_or(&0));
        bytes.map(byte).collect()
    }

    fn decoded(codes: &[usize], length: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; length];
        Lzw::new().decode(&packed(codes), &mut out)?;
        Some(out)
    }

    #[test]
    fn the_example_of_the_specification() {
        let codes = [CLEAR, 7, 258, 8, 8, 258, 6, 6, END];
        assert_eq!(decoded(&codes, 9).unwrap(), [7, 7, 7, 8, 8, 7, 7, 6, 6]);
        assert_eq!(
            decoded(&codes[1..], 4).unwrap(),
            [7, 7, 7, 8],
            "no clear code"
        );
        assert!(decoded(&codes, 10).is_none(), "the end comes too soon");
        assert!(decoded(&[CLEAR, 7, 259], 9).is_none(), "not defined yet");
        assert!(decoded(&[CLEAR, 258], 9).is_none(), "nothing before it");
    }

    #[test]
    fn a_run_is_made_of_its_own_beginning() {
        let codes: Vec<usize> = [CLEAR, 9].into_iter().chain(FIRST..FIRST + 300).collect();
        let length = (1..=301).sum();
        assert!(decoded(&codes, length).unwrap() == vec![9; length]);
    }

    #[test]
    fn a_full_table_stays_as_it_is() {
        let bytes = (0..6_000).map(|at| at * at % 251);
        let mut codes: Vec<usize> = [CLEAR].into_iter().chain(bytes).collect();
        let mut expected: Vec<u8> = codes[1..].iter().map(|code| *code as u8).collect();
        // The last code that found room stands for two bytes.
        codes.push(CODES - 1);
        let first = CODES - 1 - FIRST;
        expected.extend_from_within(first..first + 2);
        assert!(decoded(&codes, expected.len()).unwrap() == expected);
    }
}
