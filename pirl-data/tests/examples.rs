//! The examples run and show what they promise.

use benches::run_example;

#[test]
fn batches_packs_a_folder_and_skips_what_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..12u32 {
        let picture = image::RgbImage::from_fn(50, 40 + number, |x, y| {
            image::Rgb([(x * 5) as u8, (y * 4) as u8, (number * 20) as u8])
        });
        let path = folder.path().join(format!("{number}.png"));
        picture.save(path).unwrap();
    }
    std::fs::write(folder.path().join("broken.jpg"), "not a picture").unwrap();
    let said = run_example("batches", &[&folder.path()]);
    assert!(
        said.contains("12 images packed, 1 broken ones skipped"),
        "{said}"
    );
    assert!(said.contains("[8, 3, 96, 96]: F32"), "{said}");
    assert!(said.contains("patches [72, 3, 24, 24]: U8"), "{said}");
    assert!(said.contains("images a second, limited by"), "{said}");
}
