//! Turning the hue, through the 8-bit HSV of Pillow.
//!
//! Pillow (`libImaging/Convert.c`) mixes single and double precision, where cutting off makes the
//! last bit count. The arithmetic here is `f32` throughout, for twice the lanes, in an order that
//! gives the same bytes: a test compares all colours and all HSV values.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use pirl_core::vectorised;

use super::color::is_gray;
use super::lanes::{Block, Change, LANES, change};
use crate::Image;

/// Turns the hue by `shift` of the circle, in `[-0.5, 0.5]`, as torchvision does on PIL images.
///
/// Hue and saturation are cut to 8 bits on the way, so a shift of 0 still loses some colour
/// accuracy; pixels without colour, and channels that are not RGB, do not change.
pub fn hue(image: &mut Image, shift: f32) {
    if is_gray(image) {
        return;
    }
    // NumPy's `int32(shift * 255).astype(uint8)`: towards zero, then modulo 256.
    let shift = (f64::from(shift) * 255.0) as i32 as u8;
    turn(&mut image.pixels, f32::from(shift));
}

vectorised! {
    fn turn(pixels: &mut [u8], shift: f32) {
        change(pixels, Turn { shift });
    }
}

/// Turns the hue by so many 256ths.
struct Turn {
    shift: f32,
}

impl Change for Turn {
    #[inline(always)]
    fn change(&mut self, [reds, greens, blues]: &mut Block) {
        for lane in 0..LANES {
            let [red, green, blue] = [reds[lane], greens[lane], blues[lane]];
            let [hue, saturation, value] = to_hsv([red.into(), green.into(), blue.into()]);
            let hue = hue + self.shift;
            let hue = pick(hue < 256.0, hue, hue - 256.0);
            let [red, green, blue] = to_rgb([hue, saturation, value]);
            (reds[lane], greens[lane], blues[lane]) = (whole(red), whole(green), whole(blue));
        }
    }
}

/// Cuts off what is known to lie in `[0, 256)`.
#[inline(always)]
fn whole(value: f32) -> u8 {
    // SAFETY: the callers' values are finite and from 0 to below 256, which an `i32` holds.
    let whole: i32 = unsafe { value.to_int_unchecked() };
    whole as u8
}

#[inline(always)]
fn cut(value: f32) -> f32 {
    f32::from(whole(value))
}

#[inline(always)]
fn pick(condition: bool, yes: f32, no: f32) -> f32 {
    if condition { yes } else { no }
}

/// Pillow's `rgb2hsv_row`, of whole numbers to whole numbers in `0..=255`.
#[inline(always)]
fn to_hsv([red, green, blue]: [f32; 3]) -> [f32; 3] {
    let most = pick(red > green, red, green);
    let most = pick(blue > most, blue, most);
    let least = pick(red < green, red, green);
    let least = pick(blue < least, blue, least);
    let chroma = most - least;
    // A pixel without colour has saturation 0, and then no hue matters.
    let divisor = pick(chroma > 0.0, chroma, 1.0);
    let (is_red, is_green) = (red == most, green == most);
    let offset = pick(is_red, 0.0, pick(is_green, 2.0, 4.0));
    let plus = pick(is_red, blue, pick(is_green, red, green));
    let minus = pick(is_red, green, pick(is_green, blue, red));
    // Pillow has offset + away(plus) - away(minus) in `f64`. One of the two is the least channel,
    // whose share is exactly 1, so that a single operation here rounds.
    let first = plus == least;
    let away = (most - pick(first, minus, plus)) / divisor;
    let sector = pick(first, (offset + 1.0) - away, (offset - 1.0) + away);
    let turn = sector / 6.0;
    let turn = pick(turn < 0.0, turn + 1.0, turn);
    // The product with 255 is exact in Pillow's `f64`. Here it may have been rounded up to a whole
    // number, which the exact difference shows.
    let hue = cut(turn * 255.0);
    let hue = pick(turn * 256.0 - hue < turn, hue - 1.0, hue);
    let saturation = cut(chroma * 255.0 / pick(most > 0.0, most, 1.0));
    [hue, saturation, most]
}

/// `value * share` of 65,025, to be cut off to the nearest whole number.
#[inline(always)]
fn scaled(value: f32, share: f32) -> f32 {
    value * share * (1.0 / 65_025.0) + 0.5
}

/// Pillow's `hsv2rgb`, of whole numbers in `0..=255` to numbers to be cut off.
#[inline(always)]
fn to_rgb([hue, saturation, value]: [f32; 3]) -> [f32; 3] {
    // The sixth of the circle, and how far into it in 255ths.
    let sector = cut((hue * 6.0 + 0.5) * (1.0 / 255.0));
    let rest = hue * 6.0 - sector * 255.0;
    // Products of three bytes and less than 2^24: exact. No half comes up, 65,025 being odd.
    let p = scaled(value, (255.0 - saturation) * 255.0);
    let q = scaled(value, 65_025.0 - saturation * rest);
    let t = scaled(value, 65_025.0 - saturation * (255.0 - rest));
    // The last hue of all, 255, is the first again: sector 6 is sector 0.
    let [first, second, third] = [sector == 1.0, sector == 2.0, sector == 3.0];
    let [fourth, fifth] = [sector == 4.0, sector == 5.0];
    let red = pick(first, q, pick(second | third, p, pick(fourth, t, value)));
    let green = pick(
        first | second,
        value,
        pick(third, q, pick(fourth | fifth, p, t)),
    );
    let blue = pick(second, t, pick(third | fourth, value, pick(fifth, q, p)));
    [red, green, blue]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rgb2hsv_row` of Pillow, in its own precisions.
    fn pillow_to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
        let most = red.max(green).max(blue);
        let least = red.min(green).min(blue);
        if most == least {
            return [0, 0, most];
        }
        let chroma = f32::from(most - least);
        let away = |value: u8| f64::from(f32::from(most - value) / chroma);
        let sector = if red == most {
            away(blue) - away(green)
        } else if green == most {
            2.0 + away(red) - away(blue)
        } else {
            4.0 + away(green) - away(red)
        } as f32;
        let turn = ((f64::from(sector) / 6.0 + 1.0) % 1.0) as f32;
        let saturation = chroma / f32::from(most);
        [
            (f64::from(turn) * 255.0) as u8,
            (f64::from(saturation) * 255.0) as u8,
            most,
        ]
    }

    /// `hsv2rgb` of Pillow, in its own precisions.
    fn pillow_to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
        let position = f64::from(hue) * 6.0 / 255.0;
        let sector = position.floor();
        let fraction = f64::from((position - sector) as f32);
        let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
        let scaled = |share: f64| (f64::from(value) * share).round() as u8;
        let p = scaled(1.0 - saturation);
        let q = scaled(1.0 - saturation * fraction);
        let t = scaled(1.0 - saturation * (1.0 - fraction));
        match sector as u8 % 6 {
            0 => [value, t, p],
            1 => [q, value, p],
            2 => [p, value, t],
            3 => [p, q, value],
            4 => [t, p, value],
            _ => [value, p, q],
        }
    }

    #[test]
    fn all_colours_become_pillows_hsv_and_back() {
        let bytes = 0..=u8::MAX;
        for a in bytes.clone() {
            for b in bytes.clone() {
                for c in bytes.clone() {
                    let numbers = [a, b, c].map(f32::from);
                    let expected = pillow_to_hsv([a, b, c]);
                    let found = to_hsv(numbers).map(whole);
                    // Without saturation no hue matters.
                    assert_eq!(found[1..], expected[1..], "{a} {b} {c}");
                    assert!(found[0] == expected[0] || expected[1] == 0, "{a} {b} {c}");
                    let expected = pillow_to_rgb([a, b, c]);
                    assert_eq!(to_rgb(numbers).map(whole), expected, "{a} {b} {c}");
                }
            }
        }
    }
}
