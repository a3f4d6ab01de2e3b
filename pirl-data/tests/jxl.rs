//! JPEG XL: read as libjxl reads it (`golden/make_jxl.py`), or left out with the way to have it read.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::list_dir;
use pirl_data::Image;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jxl")
}

fn names() -> Vec<String> {
    let mut names = list_dir(&golden());
    names.retain(|name| name.ends_with(".jxl"));
    assert!(names.len() > 12);
    names
}

#[cfg(not(feature = "jxl"))]
#[test]
fn without_the_feature_its_name_is_the_reason() {
    for name in names() {
        let bytes = fs::read(golden().join(&name)).unwrap();
        let said = Image::decode(&bytes).unwrap_err().to_string();
        assert!(
            said.contains("feature jxl") && said.contains("djxl"),
            "{said}"
        );
    }
}

#[cfg(feature = "jxl")]
mod read {
    use pirl_data::{Depth, Encoding, ImageFolder, Pack, PackOptions, Reencode};
    use tempfile::TempDir;

    use super::*;
    use crate::common::write;

    /// Decoders round colours and the cosine transform in their own way.
    const LOSSY: u8 = 2;

    #[test]
    fn every_kind_decodes_as_libjxl_has_it() {
        for name in names() {
            let expected = fs::read(golden().join(format!("{name}.rgb"))).unwrap();
            let side =
                |at: usize| usize::from(u16::from_le_bytes([expected[at], expected[at + 1]]));
            let found = Image::decode(&fs::read(golden().join(&name)).unwrap()).unwrap();
            assert_eq!((found.width, found.height), (side(0), side(2)), "{name}");
            let pairs = found.pixels.iter().zip(&expected[4..]);
            let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            let lossy = name.starts_with("lossy") || name.starts_with("of-a-jpeg");
            eprintln!("{name}: off by {worst}");
            assert!(
                worst <= if lossy { LOSSY } else { 0 },
                "{name}: off by {worst}"
            );
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_no_image() {
        for name in [
            "lossless.jxl",
            "container.jxl",
            "lossy.jxl",
            "groups.jxl",
            "animated.jxl",
        ] {
            let whole = fs::read(golden().join(name)).unwrap();
            for missing in [1, 2, 10, whole.len() / 2, whole.len() - 3] {
                let cut = &whole[..whole.len() - missing];
                assert!(
                    Image::decode(cut).is_err(),
                    "{name}: {missing} bytes missing"
                );
            }
        }
    }

    #[test]
    fn more_channels_and_more_bits_are_those_of_the_file() {
        let bytes = |name: &str| fs::read(golden().join(name)).unwrap();
        let alpha = Image::decode_channels(&bytes("alpha.jxl"), 4, Depth::Upper).unwrap();
        let rgb = Image::decode(&bytes("lossless.jxl")).unwrap();
        for (four, three) in alpha.pixels.chunks(4).zip(rgb.pixels.chunks(3)) {
            assert_eq!(four, [three[0], three[1], three[2], three[1]]);
        }
        let range = Depth::Range {
            least: 0.0,
            most: 65_535.0,
        };
        let grey = Image::decode_channels(&bytes("deep-grey.jxl"), 1, range).unwrap();
        for (value, three) in grey.pixels.iter().zip(rgb.pixels.chunks(3)) {
            let deep = f64::from(three[0]) * 257.0 + 91.0;
            assert_eq!(*value, (deep / 257.0).round() as u8);
        }
    }

    #[test]
    fn a_folder_of_it_is_packed_as_the_user_chose() {
        let images = TempDir::new().unwrap();
        for name in ["lossless.jxl", "container.jxl", "lossy.jxl"] {
            fs::copy(golden().join(name), images.path().join(name)).unwrap();
        }
        // What it is, its content says.
        fs::copy(golden().join("grey.jxl"), images.path().join("z.jpg")).unwrap();
        let whole = fs::read(golden().join("alpha.jxl")).unwrap();
        fs::write(images.path().join("cut.jxl"), &whole[..whole.len() - 9]).unwrap();
        let source = ImageFolder::open(images.path()).unwrap();
        let out = TempDir::new().unwrap();
        for (reencode, encoding) in [
            (Reencode::Png, Encoding::Png),
            (Reencode::Jpeg, Encoding::Jpeg),
        ] {
            let options = PackOptions {
                reencode: Some(reencode),
                ..PackOptions::default()
            };
            let report = write(&source, &out.path().join("set"), &options);
            assert_eq!((report.packed, report.encoding), (4, encoding));
            assert_eq!(
                (report.tally.formats["jpeg xl"], report.tally.reencoded),
                (4, 4)
            );
            assert_eq!(report.skipped[0].name, "cut.jxl");
            assert!(
                report.skipped[0].reason.contains("truncated"),
                "{:?}",
                report.skipped
            );
        }
        let options = PackOptions::default();
        write(&source, &out.path().join("set"), &options);
        let pack = Pack::open(out.path().join("set")).unwrap();
        assert_eq!(pack.decode(0).unwrap(), pack.decode(1).unwrap());
    }
}
