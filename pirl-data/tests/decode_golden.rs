//! Images of every kind beside Pillow's reading of them (`golden/make_decode.py`).

mod common;

use std::fs;
use std::path::Path;

use common::list_dir;
use pirl_data::Image;

/// What a JPEG may differ by: decoders round the cosine transform and the colours in their own way,
/// and fill in halved chroma. Other formats are exact.
const JPEG: u8 = 3;

#[test]
fn every_kind_decodes_as_pillow_has_it() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let names = list_dir(&golden);
    let files: Vec<&String> = names
        .iter()
        .filter(|name| !name.ends_with(".rgb"))
        .collect();
    assert!(files.len() > 30);
    let mut wrong = Vec::new();
    for name in files {
        let expected = fs::read(golden.join(format!("{name}.rgb"))).unwrap();
        let side = |at: usize| usize::from(u16::from_le_bytes([expected[at], expected[at + 1]]));
        let expected = Image::new(side(0), side(2), expected[4..].to_vec()).unwrap();
        let found = Image::decode(&fs::read(golden.join(name)).unwrap()).unwrap();
        assert_eq!(
            (found.width, found.height),
            (expected.width, expected.height),
            "{name}"
        );
        let tolerance = if name.ends_with(".jpg") { JPEG } else { 0 };
        let pairs = found.pixels.iter().zip(&expected.pixels);
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if worst > tolerance {
            wrong.push(format!("{name}: {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
