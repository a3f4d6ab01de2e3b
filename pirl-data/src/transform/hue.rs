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
    // The cases differ in their numbers alone, so that there is no branch to mispredict. The
    // differences are exact in `f64`; Pillow's first case, in `f32`, rounds to the same.
    let (offset, plus, minus) = if red == most {
        (0.0, blue, green)
    } else if green == most {
        (2.0, red, blue)
    } else {
        (4.0, green, red)
    };
    let sector = (offset + f64::from(away(plus)) - f64::from(away(minus))) as f32;
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
    let saturation = f64::from(SHARES[usize::from(saturation)]);
    // Values are at least 0, so adding a half and cutting off rounds as C's `round` does.
    let scaled = |share: f64| (f64::from(value) * share + 0.5) as u8;
    let parts = [
        value,
        scaled(1.0 - saturation),
        scaled(1.0 - saturation * fraction),
        scaled(1.0 - saturation * (1.0 - fraction)),
    ];
    PLACES[usize::from(sector)].map(|place| parts[usize::from(place)])
}

/// Red, green and blue of each sixth of the circle, as places in value, p, q and t.
const PLACES: [[u8; 3]; 6] = [
    [0, 3, 1],
    [2, 0, 1],
    [1, 0, 3],
    [1, 2, 0],
    [3, 1, 0],
    [0, 1, 2],
];

/// 8-bit saturations as shares of 1.
const SHARES: [f32; 256] = {
    let mut shares = [0.0; 256];
    let mut saturation = 0;
    while saturation < 256 {
        shares[saturation] = (saturation as f64 / 255.0) as f32;
        saturation += 1;
    }
    shares
};

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
