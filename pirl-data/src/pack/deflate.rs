//! A zlib stream (RFC 1950 and 1951) of filtered pixels: one block of Huffman codes made for it, in which runs of
//! zeros are the only repetitions. General compressors look for others, which photographs hardly have, and
//! packing images as PNG is mostly this (benches/RESULTS.md).

use simd_adler32::Adler32;

/// Literals, the end of the block, and lengths of repetitions.
const SYMBOLS: usize = 286;
const END: usize = 256;
/// A longer code could be two writes' worth of bits; decoders look up as many bits at once, too.
const LONGEST_CODE: usize = 12;
/// What the format allows for the codes of code lengths, and the order in which their own lengths are written.
const LONGEST_LENGTH_CODE: usize = 7;
const LENGTH_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// Of code lengths: the one before, three to six times more.
const AGAIN: usize = 16;
/// Bytes that are looked at together.
const GROUP: usize = 8;

/// What a stream consists of.
enum Token {
    /// As they are.
    Literals([u8; GROUP]),
    /// One byte.
    Literal(u8),
    /// So many zeros.
    Zeros(usize),
}

/// What bytes consist of, in order.
struct Tokens<'a> {
    groups: &'a [[u8; GROUP]],
    rest: &'a [u8],
}

impl<'a> Tokens<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (groups, rest) = bytes.as_chunks();
        Self { groups, rest }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    #[inline(always)]
    fn next(&mut self) -> Option<Token> {
        let Some((group, behind)) = self.groups.split_first() else {
            let (byte, behind) = self.rest.split_first()?;
            self.rest = behind;
            return Some(Token::Literal(*byte));
        };
        if *group != [0; GROUP] {
            self.groups = behind;
            return Some(Token::Literals(*group));
        }
        let zeros = self.groups.iter().take_while(|group| **group == [0; GROUP]);
        let zeros = zeros.count();
        self.groups = &self.groups[zeros..];
        Some(Token::Zeros(zeros * GROUP))
    }
}

/// How a run of zeros is written: one literal, repetitions of at most 258, with which `each` is called, and
/// literals for what is too short for one. Returns how many literals.
fn repetitions(zeros: usize, mut each: impl FnMut(usize)) -> usize {
    let mut left = zeros - 1;
    while left >= 3 {
        let length = left.min(258);
        each(length);
        left -= length;
    }
    1 + left
}

/// Symbol, extra bits and how many of a repetition of `length` bytes, 3 to 258 (RFC 1951, 3.2.5).
fn length_symbol(length: usize) -> (usize, u64, u32) {
    match length {
        258 => (285, 0, 0),
        3..=10 => (254 + length, 0, 0),
        _ => {
            // Four symbols for each power of two, so that all but the highest two bits behind the first are extra.
            let above = length - 3;
            let extra = above.ilog2() - 2;
            let symbol = 257 + 4 * extra as usize + (above >> extra);
            (symbol, (above & ((1 << extra) - 1)) as u64, extra)
        }
    }
}

/// How often each symbol is expected.
pub(super) struct SymbolCounts([u32; SYMBOLS]);

impl SymbolCounts {
    /// Each once, for what is counted may not be all there is.
    pub(super) fn new() -> Self {
        Self([1; SYMBOLS])
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        let counts = &mut self.0;
        for token in Tokens::new(bytes) {
            match token {
                Token::Literals(bytes) => {
                    bytes
                        .iter()
                        .for_each(|byte| counts[usize::from(*byte)] += 1);
                }
                Token::Literal(byte) => counts[usize::from(byte)] += 1,
                Token::Zeros(zeros) => {
                    let count = |length| counts[length_symbol(length).0] += 1;
                    let literals = repetitions(zeros, count);
                    counts[0] += literals as u32;
                }
            }
        }
    }
}

/// A Huffman code, its first bit the lowest, as streams have it.
#[derive(Clone, Copy, Debug, Default)]
struct Code {
    bits: u16,
    size: u16,
}

/// Writes a stream behind what `bytes` holds.
pub(super) struct Deflate {
    writer: BitWriter,
    codes: [Code; SYMBOLS],
    checksum: Adler32,
}

impl Deflate {
    /// The codes suit `counts`.
    pub(super) fn new(mut bytes: Vec<u8>, counts: &SymbolCounts) -> Self {
        // A window of 32 KiB, no dictionary.
        bytes.extend([0x78, 0x01]);
        let mut writer = BitWriter {
            at: bytes.len(),
            bytes,
            bits: 0,
            count: 0,
        };
        let lengths = code_lengths(&counts.0, LONGEST_CODE);
        write_header(&mut writer, &lengths);
        let mut codes = [Code::default(); SYMBOLS];
        assign(&lengths, &mut codes);
        Self {
            writer,
            codes,
            checksum: Adler32::new(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.checksum.write(bytes);
        self.writer.make_room(bytes.len() * LONGEST_CODE / 8);
        let codes = &self.codes;
        // On the stack, where its fields can be registers.
        let mut writer = std::mem::take(&mut self.writer);
        for token in Tokens::new(bytes) {
            match token {
                Token::Literals([a, b, c, d, e, f, g, h]) => {
                    writer.literals(codes, [a, b, c, d]);
                    writer.literals(codes, [e, f, g, h]);
                }
                Token::Literal(byte) => writer.code(codes[usize::from(byte)]),
                Token::Zeros(zeros) => writer.zeros(codes, zeros),
            }
        }
        self.writer = writer;
    }

    /// What was given to [`new`](Self::new), and the stream.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.writer.make_room(0);
        self.writer.code(self.codes[END]);
        let mut bytes = self.writer.finish();
        bytes.extend(self.checksum.finish().to_be_bytes());
        bytes
    }
}

/// The beginning of the only block: the lengths of its codes (RFC 1951, 3.2.7).
fn write_header(writer: &mut BitWriter, lengths: &[u8]) {
    let all: Vec<u8> = lengths.iter().copied().chain([1]).collect();
    // Symbols, and how often the one before is meant where they repeat it.
    let mut symbols: Vec<(usize, u64)> = Vec::with_capacity(all.len());
    for run in all.chunk_by(|a, b| a == b) {
        symbols.push((usize::from(run[0]), 0));
        let mut left = run.len() - 1;
        while left >= 3 {
            let again = left.min(6);
            symbols.push((AGAIN, again as u64 - 3));
            left -= again;
        }
        symbols.extend((0..left).map(|_| (usize::from(run[0]), 0)));
    }
    let mut counts = [0; LENGTH_ORDER.len()];
    symbols.iter().for_each(|(symbol, _)| counts[*symbol] += 1);
    let lengths_of_lengths = code_lengths(&counts, LONGEST_LENGTH_CODE);
    let mut codes = [Code::default(); LENGTH_ORDER.len()];
    assign(&lengths_of_lengths, &mut codes);

    writer.make_room(4 * SYMBOLS);
    // The last block, of its own codes; literals and lengths above 257, distances above 1, lengths of lengths above 4.
    writer.put(0b101, 3);
    writer.put(SYMBOLS as u64 - 257, 5);
    writer.put(0, 5);
    writer.put(LENGTH_ORDER.len() as u64 - 4, 4);
    for symbol in LENGTH_ORDER {
        writer.put(u64::from(lengths_of_lengths[symbol]), 3);
    }
    for (symbol, again) in symbols {
        writer.code(codes[symbol]);
        if symbol == AGAIN {
            writer.put(again, 2);
        }
    }
}

/// Lengths of Huffman codes, at most `longest`, for at least two symbols that are counted; 0 for those that are not.
fn code_lengths(counts: &[u32], longest: usize) -> Vec<u8> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|at| counts[*at] > 0).collect();
    order.sort_by_key(|at| counts[*at]);
    // Leaves, then the nodes above them, which come to be in the order of their weights.
    let leaves = order.len();
    let nodes = (2 * leaves).saturating_sub(1);
    let mut weights: Vec<u64> = order.iter().map(|at| u64::from(counts[*at])).collect();
    let mut above = vec![0; nodes];
    let (mut leaf, mut inner) = (0, leaves);
    for node in leaves..nodes {
        let mut weight = 0;
        for _ in 0..2 {
            let is_leaf = leaf < leaves && (inner == node || weights[leaf] <= weights[inner]);
            let next = if is_leaf { &mut leaf } else { &mut inner };
            above[*next] = node;
            weight += weights[*next];
            *next += 1;
        }
        weights.push(weight);
    }
    let mut depths = vec![0; nodes];
    for node in (0..nodes.saturating_sub(1)).rev() {
        depths[node] = depths[above[node]] + 1;
    }

    // How many codes there are of each length. Where some were too long, the longest allowed are too many then: one
    // of them at a time becomes the pair of a shorter one, which is made longer by a bit.
    let mut numbers = vec![0_usize; longest + 1];
    for depth in &depths[..leaves] {
        numbers[longest.min(*depth)] += 1;
    }
    let used = |numbers: &[usize]| -> usize {
        let places = numbers.iter().enumerate();
        places
            .map(|(length, number)| number << (longest - length))
            .sum()
    };
    for _ in 1 << longest..used(&numbers) {
        numbers[longest] -= 1;
        if let Some(shorter) = (1..longest).rev().find(|length| numbers[*length] > 0) {
            numbers[shorter] -= 1;
            numbers[shorter + 1] += 2;
        }
    }

    let mut lengths = vec![0; counts.len()];
    let mut rarest = order.into_iter();
    for (length, number) in numbers.into_iter().enumerate().rev() {
        for symbol in rarest.by_ref().take(number) {
            lengths[symbol] = length as u8;
        }
    }
    lengths
}

/// The codes of these lengths (RFC 1951, 3.2.2).
fn assign(lengths: &[u8], codes: &mut [Code]) {
    let mut next = 0_u16;
    for size in 1..=15 {
        for (code, _) in codes
            .iter_mut()
            .zip(lengths)
            .filter(|(_, length)| **length == size)
        {
            let size = u16::from(size);
            *code = Code {
                bits: next.reverse_bits() >> (16 - size),
                size,
            };
            next += 1;
        }
        next <<= 1;
    }
}

/// Bits from the lowest of each byte on.
#[derive(Default)]
struct BitWriter {
    /// What is written up to `at`, and room behind.
    bytes: Vec<u8>,
    at: usize,
    /// The last `count` bits, less than 8, are yet to be written.
    bits: u64,
    count: u32,
}

impl BitWriter {
    /// Room for so many bytes and some more.
    fn make_room(&mut self, bytes: usize) {
        let end = self.at + bytes + 64;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
    }

    /// Appends the lowest `size` bits, 56 at most; all others are 0.
    #[inline(always)]
    fn put(&mut self, bits: u64, size: u32) {
        self.bits |= bits << self.count;
        self.count += size;
        self.bytes[self.at..][..size_of::<u64>()].copy_from_slice(&self.bits.to_le_bytes());
        self.at += self.count as usize / 8;
        self.bits >>= self.count & !7;
        self.count &= 7;
    }

    #[inline(always)]
    fn code(&mut self, code: Code) {
        self.put(u64::from(code.bits), u32::from(code.size));
    }

    #[inline(always)]
    fn literals(&mut self, codes: &[Code; SYMBOLS], bytes: [u8; 4]) {
        let [a, b, c, d] = bytes.map(|byte| codes[usize::from(byte)]);
        let first = u64::from(a.bits) | u64::from(b.bits) << a.size;
        let second = u64::from(c.bits) | u64::from(d.bits) << c.size;
        let size = a.size + b.size;
        self.put(first | second << size, u32::from(size + c.size + d.size));
    }

    fn zeros(&mut self, codes: &[Code; SYMBOLS], zeros: usize) {
        self.code(codes[0]);
        let literals = repetitions(zeros, |length| {
            let (symbol, extra, size) = length_symbol(length);
            self.code(codes[symbol]);
            // The only distance, 1, has a code of one bit, 0.
            self.put(extra, size + 1);
        });
        (1..literals).for_each(|_| self.code(codes[0]));
    }

    fn finish(mut self) -> Vec<u8> {
        // The bits that are left are in the byte at which the next would be written.
        self.bytes.truncate(self.at + usize::from(self.count > 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::ZlibDecoder;
    use proptest::prelude::*;

    use super::*;

    fn deflate(parts: &[&[u8]], counted: &[u8]) -> Vec<u8> {
        let mut counts = SymbolCounts::new();
        counts.add(counted);
        let mut stream = Deflate::new(Vec::new(), &counts);
        parts.iter().for_each(|part| stream.write(part));
        stream.finish()
    }

    fn inflate(stream: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ZlibDecoder::new(stream).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_length_of_a_run_is_read_back() {
        for before in [0, 1, 5] {
            for zeros in (0..600).chain([5_000, 65_537]) {
                let mut bytes = vec![7; before];
                bytes.resize(before + zeros, 0);
                bytes.push(9);
                let stream = deflate(&[&bytes], &bytes);
                assert!(inflate(&stream) == bytes, "{before}, {zeros}");
            }
        }
        assert!(inflate(&deflate(&[], &[])).is_empty());
        let stream = deflate(&[&[0; 1 << 20]], &[0; 1 << 20]);
        assert!(stream.len() < 2_000, "{}", stream.len());
    }

    #[test]
    fn what_was_not_counted_is_read_back() {
        let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        assert!(inflate(&deflate(&[&bytes, &bytes], &[0; 65_536])) == bytes.repeat(2));
    }

    /// The least number of bits that codes without a limit need, by merging the two least weights over and over.
    fn least_bits(counts: &[u32]) -> u64 {
        let mut weights: Vec<u64> = counts
            .iter()
            .map(|x| u64::from(*x))
            .filter(|x| *x > 0)
            .collect();
        let mut bits = 0;
        while weights.len() > 1 {
            weights.sort_unstable_by(|a, b| b.cmp(a));
            let merged = weights.pop().unwrap() + weights.pop().unwrap();
            bits += merged;
            weights.push(merged);
        }
        bits
    }

    fn check_lengths(counts: &[u32], longest: usize) -> Vec<u8> {
        let lengths = code_lengths(counts, longest);
        for (count, length) in counts.iter().zip(&lengths) {
            assert_eq!(*count > 0, *length > 0);
            assert!(usize::from(*length) <= longest);
        }
        let used: usize = lengths
            .iter()
            .filter(|x| **x > 0)
            .map(|x| 1 << (longest - usize::from(*x)))
            .sum();
        assert_eq!(used, 1 << longest, "an incomplete code, which zlib refuses");
        lengths
    }

    #[test]
    fn counts_like_those_of_fibonacci_stay_within_the_limit() {
        let mut counts = vec![1_u32, 1];
        while counts.len() < 40 {
            counts.push(counts[counts.len() - 2] + counts[counts.len() - 1]);
        }
        for longest in 6..=15 {
            let lengths = check_lengths(&counts, longest);
            assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_are_read_back(
            parts in prop::collection::vec(
                (prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 0..4_u8, 1 => any::<u8>()], 0..900), 0..40_usize),
                0..4,
            ),
        ) {
            let parts: Vec<Vec<u8>> = parts
                .into_iter()
                .map(|(mut part, zeros)| { part.extend(vec![0; zeros]); part })
                .collect();
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let counted = parts.first().copied().unwrap_or_default();
            prop_assert!(inflate(&deflate(&parts, counted)) == parts.concat());
        }

        #[test]
        fn codes_are_the_shortest_where_no_limit_is_met(counts in prop::collection::vec(0..1_000_u32, 2..286)) {
            prop_assume!(counts.iter().filter(|count| **count > 0).count() >= 2);
            let lengths = check_lengths(&counts, 30);
            let bits: u64 = counts.iter().zip(&lengths).map(|(n, size)| u64::from(*n) * u64::from(*size)).sum();
            prop_assert_eq!(bits, least_bits(&counts));
            check_lengths(&counts, 12);
        }
    }
}
