//! Turning the hue, through the 8-bit HSV of Pillow.

use crate::Image;

use super::color::is_gray;

/// Turns the hue by `shift` of the circle, in `[-0.5, 0.5]`, as torchvision does on PIL images.
///
/// Hue and saturation are cut to 8 bits on the way, so a shift of 0 still loses some colour
/// accuracy; pixels without colour do not change.
pub fn hue(image: &mut Image, shift: f32) {
    if is_gray(image) {
        return;
    }
    // NumPy's `int32(shift * 255).astype(uint8)`: towards zero, then modulo 256.
    let shift = (f64::from(shift) * 255.0) as i32 as u8;
    for pixel in image.pixels.chunks_exact_mut(3) {
        let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&to_rgb([h.wrapping_add(shift), s, v]));
    }
}

/// Pillow's `rgb2hsv_row` (`libImaging/Convert.c`), with its mixture of single and double precision.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    if most == least {
        return [0, 0, most];
    }
    let chroma = f32::from(most - least);
    let saturation = chroma / f32::from(most);
    let away = |value: u8| f32::from(most - value) / chroma;
    let sector = if red == most {
        away(blue) - away(green)
    } else if green == most {
        (2.0 + f64::from(away(red)) - f64::from(away(blue))) as f32
    } else {
        (4.0 + f64::from(away(green)) - f64::from(away(red))) as f32
    };
    // `fmod(x, 1)`: x lies between 5/6 and 2.
    let turn = f64::from(sector) / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    [
        (f64::from(turn) * 255.0) as u8,
        (f64::from(saturation) * 255.0) as u8,
        most,
    ]
}

/// Pillow's `hsv2rgb`.
fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let (sector, fraction) = SECTORS[usize::from(hue)];
    let fraction = f64::from(fraction);
    let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
    // Values are at least 0, so adding a half and cutting off rounds as C's `round` does.
    let scaled = |share: f64| (f64::from(value) * share + 0.5) as u8;
    let p = scaled(1.0 - saturation);
    let q = scaled(1.0 - saturation * fraction);
    let t = scaled(1.0 - saturation * (1.0 - fraction));
    match sector {
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        5 => [value, p, q],
        _ => [value, t, p],
    }
}

/// Of each 8-bit hue: its sixth of the circle (the last of all is the first again), and how far
/// into it.
const SECTORS: [(u8, f32); 256] = {
    let mut sectors = [(0, 0.0); 256];
    let mut hue = 0;
    while hue < 256 {
        let position = hue as f64 * 6.0 / 255.0;
        let sector = position as u8;
        sectors[hue] = (sector % 6, (position - sector as f64) as f32);
        hue += 1;
    }
    sectors
};
