//! Scenes: what is written is what is seen, whatever the machine.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use pirl_data::{DataError, Encoding, Pack, PackOptions, RawSample, Source, pack};
use pirl_scenes::{SceneConfig, SceneReport, compose_scenes};

/// Bright rectangles on black: class 0 is wide, class 1 high.
struct Rectangles(Vec<String>);

impl Source for Rectangles {
    fn len(&self) -> usize {
        6
    }

    fn class_names(&self) -> &[String] {
        &self.0
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let label = (index % 2) as u32;
        let (wide, high) = if label == 0 { (12, 6) } else { (6, 12) };
        let inside = |x: usize, y: usize| {
            (index + 2..index + 2 + wide).contains(&x) && (3..3 + high).contains(&y)
        };
        let pixel = |at: usize| if inside(at % 20, at / 20) { 250 } else { 0 };
        Ok(RawSample {
            name: index.to_string(),
            bytes: Cow::Owned((0..20 * 16).map(pixel).collect()),
            encoding: Encoding::Raw {
                height: 16,
                width: 20,
                channels: 1,
            },
            label: Some(label),
            objects: None,
        })
    }

    fn describe(&self) -> String {
        "rectangles".to_owned()
    }
}

fn rectangles(folder: &Path) -> Pack {
    let path = folder.join("rectangles");
    let source = Rectangles(vec!["wide".to_owned(), "high & mighty".to_owned()]);
    pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    Pack::open(&path).unwrap()
}

fn compose(pack: &Pack, folder: &Path, split: &str, config: &SceneConfig) -> SceneReport {
    compose_scenes(pack, folder, split, config, &mut |_, _| {}).unwrap()
}

/// The numbers between the tags of this name.
fn numbers(xml: &str, tag: &str) -> Vec<i32> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    xml.split(&open)
        .skip(1)
        .map(|rest| rest.split(&close).next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn boxes_are_tight_around_what_is_visible() {
    let folder = tempfile::tempdir().unwrap();
    let pack = rectangles(folder.path());
    let config = SceneConfig {
        scenes: 12,
        items: [1, 1],
        ..SceneConfig::default()
    };
    let report = compose(&pack, folder.path(), "train", &config);
    assert_eq!(
        (report.scenes, report.objects, report.difficult),
        (12, 12, 0)
    );
    for scene in 0..12 {
        let name = format!("train_{scene:06}");
        let xml = folder.path().join(format!("Annotations/{name}.xml"));
        let xml = fs::read_to_string(xml).unwrap();
        let corner = |tag| numbers(&xml, tag)[0];
        let (left, top) = (corner("xmin") - 1, corner("ymin") - 1);
        let (right, bottom) = (corner("xmax"), corner("ymax"));
        let (wide, high) = (right - left, bottom - top);
        let longer = if xml.contains("<name>wide</name>") {
            assert!((wide - 2 * high).abs() <= 2, "{wide} x {high}");
            wide
        } else {
            assert!(xml.contains("<name>high &amp; mighty</name>"));
            assert!((high - 2 * wide).abs() <= 2, "{wide} x {high}");
            high
        };
        assert!((23..=81).contains(&longer));
        let picture = folder.path().join(format!("JPEGImages/{name}.jpg"));
        let picture = image::open(picture).unwrap().to_luma8();
        assert_eq!(picture.width(), corner("width") as u32);
        // The item is the brightest there is: from within the box to outside, light falls off.
        let at = |x: i32, y: i32| i32::from(picture.get_pixel(x as u32, y as u32)[0]);
        let (x, y) = ((left + right) / 2, (top + bottom) / 2);
        let mean = |x: i32, y: i32| (-2..=2).map(|d| at(x + d, y)).sum::<i32>() / 5;
        let mean_y = |x: i32, y: i32| (-2..=2).map(|d| at(x, y + d)).sum::<i32>() / 5;
        let inside = mean(x, y);
        assert!(inside > 165, "{name}: {inside}");
        assert!((mean_y(left + 1, y) - inside).abs() < 30, "{name}");
        assert!((mean_y(right - 2, y) - inside).abs() < 30, "{name}");
        assert!((mean(x, top + 1) - inside).abs() < 30, "{name}");
        assert!((mean(x, bottom - 2) - inside).abs() < 30, "{name}");
    }
}

#[test]
fn covered_items_are_difficult_and_none_is_covered_too_far() {
    let folder = tempfile::tempdir().unwrap();
    let pack = rectangles(folder.path());
    let config = SceneConfig {
        scenes: 60,
        items: [6, 9],
        ..SceneConfig::default()
    };
    let report = compose(&pack, folder.path(), "train", &config);
    assert!(report.objects > 60 * 4, "{report:?}");
    let share = report.difficult as f64 / report.objects as f64;
    assert!((0.02..0.5).contains(&share), "{report:?}");
    let bare = SceneConfig {
        visible_at_least: 1.0,
        ..config
    };
    let report = compose(&pack, folder.path(), "bare", &bare);
    assert_eq!(report.difficult, 0);
    for scene in 0..60 {
        let xml = folder
            .path()
            .join(format!("Annotations/bare_{scene:06}.xml"));
        let xml = fs::read_to_string(xml).unwrap();
        assert!(
            numbers(&xml, "occluded")
                .iter()
                .all(|occluded| *occluded == 0)
        );
        let corners = ["xmin", "ymin", "xmax", "ymax"].map(|tag| numbers(&xml, tag));
        for (tag, limit) in [("xmax", "width"), ("ymax", "height")] {
            let limit = numbers(&xml, limit)[0];
            assert!(numbers(&xml, tag).iter().all(|side| *side <= limit));
        }
        // Rectangles that do not cover each other have boxes that do not.
        let boxes: Vec<[i32; 4]> = (0..corners[0].len())
            .map(|i| [0, 1, 2, 3].map(|corner: usize| corners[corner][i]))
            .collect();
        for (i, a) in boxes.iter().enumerate() {
            for b in &boxes[..i] {
                let apart = a[0] > b[2] || b[0] > a[2] || a[1] > b[3] || b[1] > a[3];
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let pack = rectangles(folder.path());
    let config = SceneConfig {
        scenes: 5,
        ..SceneConfig::default()
    };
    let scenes = |name: &str, split: &str, config: &SceneConfig| -> Vec<Vec<u8>> {
        let folder = folder.path().join(name);
        compose(&pack, &folder, split, config);
        let set = folder.join(format!("ImageSets/Main/{split}.txt"));
        let names = fs::read_to_string(set).unwrap();
        assert_eq!(names.lines().count(), 5);
        let files = names.lines().flat_map(|name| {
            let image = folder.join(format!("JPEGImages/{name}.jpg"));
            let annotation = folder.join(format!("Annotations/{name}.xml"));
            [fs::read(image).unwrap(), fs::read(annotation).unwrap()]
        });
        files.collect()
    };
    let first = scenes("a", "train", &config);
    assert_eq!(first, scenes("b", "train", &config));
    assert_ne!(first[0], scenes("a", "test", &config)[0]);
    let seed = SceneConfig { seed: 1, ..config };
    assert_ne!(first[0], scenes("c", "train", &seed)[0]);
    let names = fs::read_to_string(folder.path().join("a/class_names.txt")).unwrap();
    assert_eq!(names, "wide\nhigh & mighty\n");
}

#[test]
fn nothing_is_overwritten_and_wrong_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let pack = rectangles(folder.path());
    let config = SceneConfig {
        scenes: 2,
        ..SceneConfig::default()
    };
    compose(&pack, folder.path(), "train", &config);
    let refused = |split: &str, change: fn(&mut SceneConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let done = compose_scenes(&pack, folder.path(), split, &config, &mut |_, _| {});
        done.unwrap_err().to_string()
    };
    assert!(refused("train", |_| {}).contains("train.txt"));
    assert!(refused("../train", |_| {}).contains("split"));
    assert!(refused("new", |config| config.scenes = 0).contains("scenes"));
    assert!(refused("new", |config| config.items = [3, 2]).contains("items"));
    assert!(refused("new", |config| config.item_side = [24, 500]).contains("item_side"));
    assert!(refused("new", |config| config.sides.clear()).contains("item_side"));
    assert!(refused("new", |config| config.difficult_below = f64::NAN).contains("difficult"));
    assert!(!folder.path().join("ImageSets/Main/new.txt").exists());
    fs::write(folder.path().join("class_names.txt"), "other\n").unwrap();
    assert!(refused("new", |_| {}).contains("classes"));
}
