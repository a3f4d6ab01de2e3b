//! Gaussian blur as Pillow's: three box blurs with a fractional radius, rounded to 8 bits between.
//!
//! Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering"
//! (2011), numbers in brackets; `libImaging/BoxBlur.c`.

use crate::Image;

const PASSES: usize = 3;

/// Blurs by a Gaussian of standard deviation `radius` in pixels; 0 changes nothing.
///
/// Pixels beyond the border are those at the border. `spare` is a buffer whose content is overwritten.
pub fn gaussian_blur(image: &mut Image, radius: f32, spare: &mut Vec<u8>) {
    let channels = image.channels;
    debug_assert_eq!(image.pixels.len(), image.width * image.height * channels);
    let radius = box_radius(radius);
    if radius.is_nan() || radius <= 0.0 || image.pixels.is_empty() {
        return;
    }
    spare.resize(image.pixels.len(), 0);
    let (width, height) = (image.width, image.height);
    // Blurring down the columns works on whole rows at once, so rows are blurred as columns.
    transpose(&image.pixels, width, height, channels, spare);
    for _ in 0..PASSES {
        blur_columns(spare, &mut image.pixels, height * channels, radius);
        std::mem::swap(spare, &mut image.pixels);
    }
    transpose(spare, height, width, channels, &mut image.pixels);
    for _ in 0..PASSES {
        blur_columns(&image.pixels, spare, width * channels, radius);
        std::mem::swap(spare, &mut image.pixels);
    }
}

/// The radius of a box whose three-fold use has the deviation `radius`: [7], [11] and [14].
fn box_radius(radius: f32) -> f32 {
    let variance = radius * radius / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    part /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
    whole + part
}

/// Bytes of a row that are blurred at once: their sums stay on the stack.
const BLOCK: usize = 1024;

/// One box blur down the columns of rows of `row` bytes.
fn blur_columns(from: &[u8], to: &mut [u8], row: usize, radius: f32) {
    let rows = from.len() / row;
    let whole = radius as usize;
    // The weight of a pixel inside the box, and of the one just beyond either end, of 2^24.
    let inside = ((1_u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
    let beyond = ((1 << 24) - (whole as u32 * 2 + 1) * inside) / 2;
    let reach = whole as isize;
    for start in (0..row).step_by(BLOCK) {
        let end = row.min(start + BLOCK);
        // A part of row `y + shift`, or of the nearest there is.
        let line = |y: usize, shift: isize| {
            let y = y.saturating_add_signed(shift).min(rows - 1);
            &from[y * row + start..y * row + end]
        };
        let mut sums = [0_u32; BLOCK];
        let sums = &mut sums[..end - start];
        for shift in -reach - 1..reach {
            // `saturating_add_signed` clamps at the first row.
            for (sum, value) in sums.iter_mut().zip(line(0, shift)) {
                *sum += u32::from(*value);
            }
        }
        for (y, out) in to.chunks_exact_mut(row).enumerate() {
            let left = line(y, -reach - 1);
            let enters = line(y, reach);
            let right = line(y, reach + 1);
            let ends = left.iter().zip(right);
            for (((out, sum), enters), (left, right)) in out[start..end]
                .iter_mut()
                .zip(&mut *sums)
                .zip(enters)
                .zip(ends)
            {
                let (left, right) = (u32::from(*left), u32::from(*right));
                *sum = *sum + u32::from(*enters) - left;
                *out = ((*sum * inside + (left + right) * beyond + (1 << 23)) >> 24) as u8;
            }
        }
    }
}

/// Rows of `width` pixels to columns.
fn transpose(from: &[u8], width: usize, height: usize, channels: usize, to: &mut [u8]) {
    match channels {
        3 => to_columns(from, width, height, 3, to),
        channels => to_columns(from, width, height, channels, to),
    }
}

/// Inlined, so that the usual number of channels is a constant.
#[inline(always)]
fn to_columns(from: &[u8], width: usize, height: usize, channels: usize, to: &mut [u8]) {
    for (x, column) in to.chunks_exact_mut(height * channels).enumerate() {
        for (y, pixel) in column.chunks_exact_mut(channels).enumerate() {
            let start = (y * width + x) * channels;
            pixel.copy_from_slice(&from[start..start + channels]);
        }
    }
}
