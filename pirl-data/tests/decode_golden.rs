//! Images of every kind beside Pillow's reading of them (`golden/make_decode.py`, `make_formats.py`).

mod common;

use std::fs;
use std::path::Path;

use common::list_dir;
use pirl_data::Image;

/// What a JPEG or a lossy WebP may differ by: decoders round the cosine transform and the colours in
/// their own way, and fill in halved chroma. Other files are exact.
const LOSSY: u8 = 3;

#[test]
fn every_kind_decodes_as_pillow_has_it() {
    for (folder, least) in [("decode", 30), ("formats", 60)] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(folder);
        let names = list_dir(&golden);
        let files: Vec<&String> = names
            .iter()
            .filter(|name| !name.ends_with(".rgb"))
            .collect();
        assert!(files.len() > least);
        let wrong: Vec<String> = files
            .iter()
            .filter_map(|name| compare(&golden, name).err())
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

fn compare(golden: &Path, name: &str) -> Result<(), String> {
    let expected = fs::read(golden.join(format!("{name}.rgb"))).unwrap();
    let side = |at: usize| usize::from(u16::from_le_bytes([expected[at], expected[at + 1]]));
    let expected = Image::new(side(0), side(2), expected[4..].to_vec()).unwrap();
    let bytes = fs::read(golden.join(name)).unwrap();
    let found = Image::decode(&bytes).map_err(|error| format!("{name}: {error}"))?;
    if (found.width, found.height) != (expected.width, expected.height) {
        return Err(format!("{name}: {} x {}", found.width, found.height));
    }
    let lossy = bytes.starts_with(&[0xFF, 0xD8]) || name.starts_with("lossy");
    let pairs = found.pixels.iter().zip(&expected.pixels);
    let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    if worst > if lossy { LOSSY } else { 0 } {
        return Err(format!("{name}: off by {worst}"));
    }
    Ok(())
}
