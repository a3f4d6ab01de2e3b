//! What the micro-kernels multiply: numbers, or pairs of `bf16` of which an instruction adds up both
//! products.
//!
//! The products of a convolution sum over channels, so a pair is two neighbouring channels of a
//! pixel, just as they lie. The weight gradient sums over pixels, so there it is one channel of two
//! pixels, which packing puts side by side.

use candle_core::DType;
use half::bf16;

use super::plan::Row;
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

    /// Packs `len` numbers of `x` after the source of each of `pixels`: tiles of `ROWS` of them, each
    /// with [`depth`] groups of `ROWS` lanes, the last tile filled up with zeros.
    fn pack_tiles<T: Element, const ROWS: usize>(
        pixels: &[Row],
        x: &[T],
        len: usize,
        packed: &mut [Self],
    );

    /// Packs the `channels` numbers of `dy` at the destination of each of `pixels`: panels of `WIDTH`
    /// channels, each with [`depth`] groups of `WIDTH` lanes, the last panel filled up with zeros.
    fn pack_panels<T: Element, const WIDTH: usize>(
        pixels: &[Row],
        dy: &[T],
        channels: usize,
        packed: &mut [Self],
    );
}

/// PlainRegister that `numbers` of them take.
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
    fn pack_tiles<T: Element, const ROWS: usize>(
        pixels: &[Row],
        x: &[T],
        len: usize,
        packed: &mut [f32],
    ) {
        let depth = pixels.len();
        for (k, pixel) in pixels.iter().enumerate() {
            let (tiles, rest) = x[pixel.source..][..len].as_chunks::<ROWS>();
            let places = packed.chunks_exact_mut(depth * ROWS);
            for (place, tile) in places.zip(tiles) {
                let place = &mut place[k * ROWS..][..ROWS];
                place.copy_from_slice(&tile.map(T::to_f32));
            }
            if !rest.is_empty() {
                let last = &mut packed[(tiles.len() * depth + k) * ROWS..][..ROWS];
                last.fill(0.0);
                for (last, x) in last.iter_mut().zip(rest) {
                    *last = x.to_f32();
                }
            }
        }
    }

    #[inline(always)]
    fn pack_panels<T: Element, const WIDTH: usize>(
        pixels: &[Row],
        dy: &[T],
        channels: usize,
        packed: &mut [f32],
    ) {
        let panels = packed.chunks_exact_mut(pixels.len() * WIDTH);
        for (first, panel) in (0..channels).step_by(WIDTH).zip(panels) {
            let (places, _) = panel.as_chunks_mut::<WIDTH>();
            for (place, pixel) in places.iter_mut().zip(pixels) {
                let numbers = &dy[pixel.destination..][first..channels];
                match numbers.first_chunk::<WIDTH>() {
                    Some(whole) => *place = whole.map(T::to_f32),
                    None => {
                        *place = [0.0; WIDTH];
                        for (place, x) in place.iter_mut().zip(numbers) {
                            *place = x.to_f32();
                        }
                    }
                }
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
        Self([first, second].map(|x| Element::from_f32(x.to_f32())))
    }
}

impl Lane for Pair {
    const NUMBERS: usize = 2;
    const ZERO: Pair = Pair([bf16::ZERO; 2]);

    #[inline(always)]
    fn put(&mut self, index: usize, x: f32) {
        self.0[index] = Element::from_f32(x);
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
    fn pack_tiles<T: Element, const ROWS: usize>(
        pixels: &[Row],
        x: &[T],
        len: usize,
        packed: &mut [Pair],
    ) {
        let depth = pixels.len().div_ceil(2);
        for (k, pixels) in pixels.chunks(2).enumerate() {
            let numbers = |pixel: &Row| &x[pixel.source..][..len];
            let (first, second) = (numbers(&pixels[0]), pixels.get(1).map(numbers));
            let places = packed.chunks_exact_mut(depth * ROWS);
            for (start, place) in (0..len).step_by(ROWS).zip(places) {
                let rows = start..(start + ROWS).min(len);
                let second = second.map(|x| &x[rows.clone()]);
                pair_up(&first[rows], second, &mut place[k * ROWS..][..ROWS]);
            }
        }
    }

    #[inline(always)]
    fn pack_panels<T: Element, const WIDTH: usize>(
        pixels: &[Row],
        dy: &[T],
        channels: usize,
        packed: &mut [Pair],
    ) {
        let depth = pixels.len().div_ceil(2);
        let panels = packed.chunks_exact_mut(depth * WIDTH);
        for (start, panel) in (0..channels).step_by(WIDTH).zip(panels) {
            let rows = start..(start + WIDTH).min(channels);
            let numbers = |pixel: &Row| &dy[pixel.destination..][rows.clone()];
            for (pixels, place) in pixels.chunks(2).zip(panel.chunks_exact_mut(WIDTH)) {
                pair_up(numbers(&pixels[0]), pixels.get(1).map(numbers), place);
            }
        }
    }
}

/// Number by number of two pixels; without a second one, and beyond the last number, with zeros.
#[inline(always)]
fn pair_up<T: Element>(first: &[T], second: Option<&[T]>, place: &mut [Pair]) {
    if let Some(second) = second
        && first.len() == place.len()
    {
        for ((place, &first), &second) in place.iter_mut().zip(first).zip(second) {
            *place = Pair::new(first, second);
        }
        return;
    }
    place.fill(Pair::ZERO);
    let zero = T::from_f32(0.0);
    for (i, (place, &first)) in place.iter_mut().zip(first).enumerate() {
        *place = Pair::new(first, second.map_or(zero, |second| second[i]));
    }
}
