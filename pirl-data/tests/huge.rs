//! Files far larger than usual: time in proportion to their size, and memory that their size justifies.
//!
//! Memory is bounded by about twice what is taken, time by far more: a busy machine took 6 s for an XML file
//! of 12 MiB (17 times its size in memory), 3 s for a JSON of 95 (0.4), 4 s for an archive of 122 (0.07) and 28 s
//! for a list of 43 (10), most of it spent on asking for a million files.

mod common;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{jpeg, picture};
use pirl_data::{Annotated, List, Source, WebDataset};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: benches::Counting = benches::Counting;

/// Runs `read` on a file of so many bytes. It may take `memory` times as many, and `time`.
fn bounded<T>(name: &str, bytes: u64, memory: f64, time: Duration, read: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let (found, peak) = benches::peak_of(read);
    let taken = started.elapsed();
    let share = peak as f64 / bytes as f64;
    eprintln!(
        "{name}: {} MiB in {taken:.1?}, memory {share:.2} times as much",
        bytes >> 20
    );
    assert!(
        share < memory,
        "{name} took {share:.2} times the memory of its {bytes} bytes"
    );
    assert!(taken < time, "{name} took {taken:?}");
    found
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

const MINUTE: Duration = Duration::from_secs(60);

// One test, for the memory is counted for the whole process.
#[test]
fn huge_files_take_time_and_memory_in_proportion() {
    let dir = TempDir::new().unwrap();
    let photo = jpeg(&picture(300, 200));

    // VOC: a hundred thousand objects in one image.
    let root = dir.path().join("voc");
    for folder in ["JPEGImages", "Annotations"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("JPEGImages/1.jpg"), &photo).unwrap();
    let mut xml = "<annotation><filename>1.jpg</filename>".to_owned();
    for object in 0..100_000 {
        let (x, y) = (object % 280, object / 280 % 180);
        let _ = write!(
            xml,
            "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>\
             <xmax>{}</xmax><ymax>{}</ymax></bndbox></object>",
            x + 1,
            y + 1,
            x + 9,
            y + 7
        );
    }
    xml += "</annotation>";
    fs::write(root.join("Annotations/1.xml"), &xml).unwrap();
    let voc = bounded("voc", xml.len() as u64, 30.0, MINUTE, || {
        Annotated::voc(&[&root], "all").unwrap()
    });
    assert_eq!(voc.read(0).unwrap().objects.unwrap().len(), 100_000);
    drop(voc);

    // COCO: a quarter of a million annotations with outlines, which are passed over as they stream by.
    let root = dir.path().join("coco");
    fs::create_dir(&root).unwrap();
    let json = root.join("instances.json");
    let mut out = BufWriter::new(File::create(&json).unwrap());
    write!(out, "{{\"images\": [").unwrap();
    for image in 0..500 {
        fs::write(root.join(format!("{image}.jpg")), &photo).unwrap();
        let comma = if image > 0 { "," } else { "" };
        write!(out, "{comma}{{\"id\": {image}, \"file_name\": \"{image}.jpg\", \"width\": 300, \"height\": 200}}").unwrap();
    }
    write!(out, "], \"annotations\": [").unwrap();
    let outline = (0..40)
        .map(|at| format!("{at}.25"))
        .collect::<Vec<_>>()
        .join(", ");
    for number in 0..250_000 {
        let comma = if number > 0 { "," } else { "" };
        write!(
            out,
            "{comma}{{\"id\": {number}, \"image_id\": {}, \"category_id\": 18, \"iscrowd\": 0, \"area\": 48.5, \
             \"bbox\": [{}, 20.5, 9.75, 7.5], \"segmentation\": [[{outline}]]}}",
            number % 500,
            number % 280
        )
        .unwrap();
    }
    write!(
        out,
        "], \"categories\": [{{\"id\": 18, \"name\": \"dog\"}}]}}"
    )
    .unwrap();
    out.into_inner().unwrap().sync_all().unwrap();
    let coco = bounded("coco", size(&json), 1.0, MINUTE, || {
        Annotated::coco(&json, None).unwrap()
    });
    let objects = (0..coco.len()).map(|image| coco.read(image).unwrap().objects.unwrap().len());
    assert_eq!(objects.sum::<usize>(), 250_000);
    drop(coco);

    // Tar: a hundred thousand members in the form of samples of an image and a class.
    let archive = dir.path().join("many.tar");
    let mut out = tar::Builder::new(BufWriter::new(File::create(&archive).unwrap()));
    let small = jpeg(&picture(9, 7));
    for sample in 0..50_000 {
        for (ending, bytes) in [("jpg", &small[..]), ("cls", b"3")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            out.append_data(&mut header, format!("{sample:06}.{ending}"), bytes)
                .unwrap();
        }
    }
    out.into_inner()
        .unwrap()
        .into_inner()
        .unwrap()
        .sync_all()
        .unwrap();
    let tar = bounded("tar", size(&archive), 0.2, MINUTE, || {
        WebDataset::open(&archive).unwrap()
    });
    assert_eq!((tar.len(), tar.class_names().len()), (50_000, 4));
    assert_eq!(&*tar.read(49_999).unwrap().bytes, &small[..]);
    drop(tar);

    // A list: a million lines, of files that are not there.
    let list = dir.path().join("list.csv");
    let mut out = BufWriter::new(File::create(&list).unwrap());
    writeln!(out, "path,label").unwrap();
    for line in 0..1_000_000 {
        writeln!(
            out,
            "photographs/of/a/folder/{line:07}.jpg,class {}",
            line % 1000
        )
        .unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();
    let bytes = size(&list);
    let error = bounded("list", bytes, 15.0, MINUTE, || List::open(&list).err());
    drop(error);
}
