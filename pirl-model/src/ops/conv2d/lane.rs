//! What the micro-kernels multiply: numbers, or pairs of `bf16` of which an instruction adds up both
//! products.
//!
//! The products of a convolution sum over channels, so a pair is two neighbouring channels of a
//! pixel, just as they lie. The weight gradient sums over pixels, so there it is one channel of two
//! pixels, which packing puts side by side.

use candle_core::DType;
use half::bf16;

use super::plan::Row;
use super::weight_gradient::SPAN;
use crate::ops::element::{Element, Plain, widen};

/// One factor of a lane of a register.
pub(super) trait Lane: Plain {
    /// Numbers in a lane.
    const NUMBERS: usize;
    /// A lane of zeros.
    const ZERO: Self;

    /// Sets number `index` of the lane, rounded to what it holds.
    fn put(&mut self, index: usize, x: f32);

    /// The pixels `x` of `channels` numbers as lanes, where they are just that.
    fn view<T: Element>(x: &[T], channels: usize) -> Option<&[Self]>;

    /// Writes the pixels `x` of `channels` numbers as lanes, zeros filling up each pixel's last.
    fn convert<T: Element>(x: &[T], channels: usize, lanes: &mut [Self]);

    /// Sets lanes to the numbers at their place in each of `pixels`, which are as many as a lane has
    /// numbers, or fewer, with zeros for those that lack. Pixels and `lanes` are of one length.
    fn join<T: Element>(pixels: &[&[T]], lanes: &mut [Self]);
}

/// Packs `len` numbers, at most [`SPAN`], of `x` after the source of each of `pixels`: tiles of `ROWS` of
/// them, each with [`lanes`] of the pixels groups of `ROWS` lanes, the last tile filled up with zeros.
#[inline(always)]
pub(super) fn pack_tiles<L: Lane, T: Element, const ROWS: usize>(
    pixels: &[Row],
    x: &[T],
    len: usize,
    packed: &mut [L],
) {
    let depth = lanes::<L>(pixels.len());
    let mut joined = [L::ZERO; SPAN];
    for (k, pixels) in pixels.chunks(L::NUMBERS).enumerate() {
        let numbers = |pixel: &Row| &x[pixel.source..][..len];
        // One pixel's numbers may be lanes as they lie.
        let row = match L::view(numbers(&pixels[0]), 1) {
            Some(row) => row,
            None => {
                joined_into(pixels, numbers, &mut joined[..len]);
                &joined[..len]
            }
        };
        let (tiles, rest) = row.as_chunks::<ROWS>();
        let places = packed.chunks_exact_mut(depth * ROWS);
        for (place, tile) in places.zip(tiles) {
            place[k * ROWS..][..ROWS].copy_from_slice(tile);
        }
        if !rest.is_empty() {
            let last = &mut packed[(tiles.len() * depth + k) * ROWS..][..ROWS];
            last.fill(L::ZERO);
            last[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Packs the `channels` numbers of `dy` at the destination of each of `pixels`: panels of `WIDTH`
/// channels, each with [`lanes`] of the pixels groups of `WIDTH` lanes, the last panel filled up with
/// zeros.
#[inline(always)]
pub(super) fn pack_panels<L: Lane, T: Element, const WIDTH: usize>(
    pixels: &[Row],
    dy: &[T],
    channels: usize,
    packed: &mut [L],
) {
    let depth = lanes::<L>(pixels.len());
    let panels = packed.chunks_exact_mut(depth * WIDTH);
    for (first, panel) in (0..channels).step_by(WIDTH).zip(panels) {
        let (places, _) = panel.as_chunks_mut::<WIDTH>();
        let numbers = |pixel: &Row| &dy[pixel.destination..][first..channels];
        for (place, pixels) in places.iter_mut().zip(pixels.chunks(L::NUMBERS)) {
            if channels - first >= WIDTH {
                joined_into(pixels, |pixel| &numbers(pixel)[..WIDTH], place);
            } else {
                *place = [L::ZERO; WIDTH];
                joined_into(pixels, numbers, &mut place[..channels - first]);
            }
        }
    }
}

/// [`Lane::join`] of the numbers of one or two pixels.
#[inline(always)]
fn joined_into<'a, L: Lane, T: Element>(
    pixels: &[Row],
    numbers: impl Fn(&Row) -> &'a [T],
    lanes: &mut [L],
) {
    match pixels {
        [first, second] => L::join(&[numbers(first), numbers(second)], lanes),
        [first] => L::join(&[numbers(first)], lanes),
        _ => {}
    }
}

/// How many lanes `numbers` of them take.
pub(super) fn lanes<L: Lane>(numbers: usize) -> usize {
    numbers.div_ceil(L::NUMBERS)
}

impl Lane for f32 {
    const NUMBERS: usize = 1;
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn put(&mut self, _: usize, x: f32) {
        *self = x;
    }

    fn view<T: Element>(x: &[T], _: usize) -> Option<&[f32]> {
        // SAFETY: `T` is `f32`.
        (T::DTYPE == DType::F32)
            .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
    }

    fn convert<T: Element>(x: &[T], _: usize, lanes: &mut [f32]) {
        widen(x, lanes);
    }

    #[inline(always)]
    fn join<T: Element>(pixels: &[&[T]], lanes: &mut [f32]) {
        for pixel in pixels {
            for (lane, x) in lanes.iter_mut().zip(*pixel) {
                *lane = x.to_f32();
            }
        }
    }
}

/// Two `bf16`, one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(transparent)]
pub(super) struct Pair(pub(super) [bf16; 2]);

// SAFETY: 32 plain bits.
unsafe impl Plain for Pair {}

impl Pair {
    #[inline(always)]
    fn new<T: Element>(first: T, second: T) -> Self {
        Self([first, second].map(half))
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        let [first, second] = self.0.map(|x| u32::from(x.to_bits()));
        second << 16 | first
    }

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        Self([bits as u16, (bits >> 16) as u16].map(bf16::from_bits))
    }
}

/// The number as `bf16`: its own bits, if it is one.
#[inline(always)]
fn half<T: Element>(x: T) -> bf16 {
    match T::DTYPE {
        // SAFETY: `T` is `bf16`.
        DType::BF16 => unsafe { std::mem::transmute_copy::<T, bf16>(&x) },
        _ => Element::from_f32(x.to_f32()),
    }
}

impl Lane for Pair {
    const NUMBERS: usize = 2;
    const ZERO: Pair = Pair([bf16::ZERO; 2]);

    #[inline(always)]
    fn put(&mut self, index: usize, x: f32) {
        // In whole lanes, which a loop over neighbours does many at a time.
        let (shift, half) = (16 * index, <bf16 as Element>::from_f32(x));
        let kept = self.bits() & !(0xFFFF << shift);
        *self = Self::from_bits(kept | u32::from(half.to_bits()) << shift);
    }

    fn view<T: Element>(x: &[T], channels: usize) -> Option<&[Pair]> {
        let whole = T::DTYPE == DType::BF16 && channels.is_multiple_of(2);
        // SAFETY: `T` is `bf16`, and pixels of an even number of them are a whole number of pairs,
        // which need no more alignment than their halves.
        whole.then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len() / 2) })
    }

    fn convert<T: Element>(x: &[T], channels: usize, lanes: &mut [Pair]) {
        let pixels = x.chunks_exact(channels.max(1));
        let places = lanes.chunks_exact_mut(channels.div_ceil(2).max(1));
        for (pixel, place) in pixels.zip(places) {
            for (numbers, place) in pixel.chunks(2).zip(place) {
                let second = numbers.get(1).copied().unwrap_or(T::from_f32(0.0));
                *place = Pair::new(numbers[0], second);
            }
        }
    }

    #[inline(always)]
    fn join<T: Element>(pixels: &[&[T]], lanes: &mut [Pair]) {
        match pixels {
            [first, second, ..] => {
                for ((lane, &first), &second) in lanes.iter_mut().zip(*first).zip(*second) {
                    *lane = Pair::new(first, second);
                }
            }
            [first] => {
                for (lane, &first) in lanes.iter_mut().zip(*first) {
                    *lane = Pair::new(first, T::from_f32(0.0));
                }
            }
            [] => {}
        }
    }
}
