//! What pages share: the colours of their charts by day and by night.

use crate::canvas::{COLORS, Color, FAINT, INK};
use crate::chart::{AXIS, GRID};

/// What colours of charts are in the dark.
const DARK: [Color; 10] = [
    [0x7f, 0xb2, 0xf0],
    [0xf2, 0xa0, 0x65],
    [0x6c, 0xc7, 0x95],
    [0xf0, 0x82, 0x94],
    [0xb9, 0x9e, 0xea],
    [0xc9, 0x9c, 0x83],
    [0xec, 0x93, 0xcf],
    [0xa9, 0xd1, 0x6b],
    [0xcf, 0xcb, 0x5e],
    [0x5c, 0xc8, 0xd8],
];

/// What entry `index` of the colours is in the dark.
pub(crate) fn dark(index: usize) -> Color {
    DARK[index % DARK.len()]
}

/// Each colour that charts are drawn in, with the one that stands for it in the dark.
pub(crate) fn colors() -> Vec<(String, String)> {
    let plain = [
        (INK, [0xe4, 0xe7, 0xec]),
        (FAINT, [0x9a, 0xa3, 0xb1]),
        (GRID, [0x2c, 0x33, 0x3d]),
        (AXIS, [0x5c, 0x66, 0x74]),
    ];
    let colors = COLORS.into_iter().zip(DARK).chain(plain);
    colors
        .map(|(light, dark)| (hex(light), hex(dark)))
        .collect()
}

/// As plotters writes colours into an SVG.
pub(crate) fn hex([red, green, blue]: Color) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}
