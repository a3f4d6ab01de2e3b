//! Damaged files: whatever the bytes, no panic, no hang, and no memory that the bytes do not justify.
//!
//! The mutations are seeded. `PIRL_MUTATIONS` sets how many there are of each kind, by default
//! 10,000 packs, 10,000 images and 2,000 files of each other format.

mod common;
#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Samples, jpeg, list_dir, picture, png, webp};
use pirl_data::{
    DataConfig, Encoding, ImageView, Loader, LoaderConfig, Objects, OnCorrupt, Pack, PackOptions,
    Source, ViewConfig, pack,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// A hundred million pixels, the most an image may have, take 300 MB; decoders hold them once more
/// on the way, or as much as the PNG decoder's own limit of 512 MiB.
const MEMORY: usize = 1 << 30;
/// Ten times what the largest allowed image takes on a busy machine.
const TIME: Duration = Duration::from_secs(60);

#[global_allocator]
static ALLOCATOR: benches::Counting = benches::Counting;

/// How many mutations of each kind.
fn mutations(default: usize) -> usize {
    let wanted = std::env::var("PIRL_MUTATIONS").ok();
    wanted.map_or(default, |count| count.parse().expect("a number"))
}

/// Changes a file in one to four ways.
fn mutate(rng: &mut ChaCha8Rng, files: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = files[rng.random_range(0..files.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..=16_usize)).min(bytes.len());
        match rng.random_range(0..9) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF][rng.random_range(0..6)],
            3 => bytes[at..end].fill(0xFF),
            4 => rng.fill_bytes(&mut bytes[at..end]),
            5 => bytes.truncate(at),
            6 => drop(bytes.drain(at..end)),
            7 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            // A number in text stays one: a header with another length or offset.
            _ => {
                let digits = bytes.iter().enumerate().filter(|(_, b)| b.is_ascii_digit());
                let places: Vec<usize> = digits.map(|(place, _)| place).collect();
                if let Some(place) = places.get(at % places.len().max(1)) {
                    bytes[*place] = b'0' + rng.random_range(0..10_u8);
                }
            }
        }
    }
    bytes
}

/// Runs a parser on mutations of `files`, and looks at its time and memory.
fn survive(
    name: &str,
    files: &[Vec<u8>],
    count: usize,
    seed: u64,
    parse: impl Fn(&mut ChaCha8Rng, Vec<u8>),
) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for number in 0..count {
        let bytes = mutate(&mut rng, files);
        let start = bytes.get(..16).unwrap_or(&bytes).escape_ascii().to_string();
        let started = Instant::now();
        let ((), taken) = benches::peak_of(|| parse(&mut rng, bytes));
        let time = started.elapsed();
        assert!(
            taken < MEMORY,
            "{name} {number} ({start}) took {taken} bytes"
        );
        assert!(time < TIME, "{name} {number} ({start}) took {time:?}");
    }
}

/// Corrects the checksums of a PNG, without which most damage goes no further than those.
fn mend(png: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let Some(end) = (at + 8)
            .checked_add(length)
            .filter(|end| end + 4 <= png.len())
        else {
            return;
        };
        let mut crc = flate2::Crc::new();
        crc.update(&png[at + 4..end]);
        png[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
}

/// The files in a folder with this ending.
fn files(folder: &Path, ending: &str) -> Vec<Vec<u8>> {
    let names = list_dir(folder).into_iter();
    let names = names.filter(|name| name.ends_with(ending));
    names
        .map(|name| fs::read(folder.join(name)).unwrap())
        .collect()
}

/// Packs of every kind: raw and labelled, encoded, with objects.
fn packs() -> Vec<Vec<u8>> {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, source: &dyn Source| {
        let output = dir.path().join(name);
        pack(source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
    };
    write("raw", &Samples::raw(5, 3));
    let mut encoded = Samples::raw(2, 0);
    encoded.samples[0] = (jpeg(&picture(9, 7)), Encoding::Jpeg, None);
    encoded.samples[1] = (png(&picture(9, 7)), Encoding::Png, None);
    write("mixed", &encoded);
    let mut webps = Samples::raw(2, 0);
    for (number, sample) in webps.samples.iter_mut().enumerate() {
        *sample = (webp(&picture(9, 7 + number)), Encoding::WebP, None);
    }
    write("webp", &webps);
    let mut annotated = Samples::raw(3, 2);
    annotated
        .samples
        .iter_mut()
        .for_each(|sample| sample.2 = None);
    let mut objects = Objects::default();
    objects.push([0.0, 0.0, 2.0, 1.0], 1, true);
    objects.push([0.5, 0.0, 2.0, 2.0], 0, false);
    annotated.objects = Some(vec![objects.clone(), Objects::default(), objects]);
    write("objects", &annotated);
    let planes = PackOptions {
        channels: 1,
        ..PackOptions::default()
    };
    pack(
        &encoded,
        &dir.path().join("planes"),
        &planes,
        &mut |_, _| {},
    )
    .unwrap();
    files(dir.path(), ".safetensors")
}

/// Packs so many damaged JPEGs, shrunk and encoded again: what does not decode is left out, and what
/// is packed decodes.
fn repack(jpegs: &[Vec<u8>], many: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut source = Samples::raw(0, 0);
    source.samples = (0..many)
        .map(|_| (mutate(&mut rng, jpegs), Encoding::Jpeg, None))
        .collect();
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let options = PackOptions {
        resize_shorter: Some(7),
        quality: Some(90),
        ..PackOptions::default()
    };
    let report = pack(&source, &output, &options, &mut |_, _| {}).unwrap();
    let (packed, skipped) = (report.packed, report.skipped.len());
    eprintln!("repacked: {packed}, skipped: {skipped}");
    assert!(packed > many / 10 && skipped > many / 10 && packed + skipped == many);
    let pack = Pack::open(&output).unwrap();
    for index in 0..packed {
        let image = pack.decode(index).unwrap();
        assert!(image.width.min(image.height) <= 7);
    }
}

/// Loads a pack of so many WebP files, of which half were damaged once it was made: batches are full, of those
/// that decode.
fn reload(webps: &[Vec<u8>], many: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let mut source = Samples::raw(0, 0);
    source.samples = (0..many)
        .map(|number| (webps[number % webps.len()].clone(), Encoding::WebP, None))
        .collect();
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let report = pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!((report.packed, report.encoding), (many, Encoding::WebP));
    let path = output.with_extension("safetensors");
    let mut file = fs::read(&path).unwrap();
    let first = &source.samples[0].0;
    let mut at = file.windows(first.len()).position(|w| w == first).unwrap();
    for (number, (bytes, ..)) in source.samples.iter().enumerate() {
        if number % 2 == 0 {
            let mut damaged = mutate(&mut rng, std::slice::from_ref(bytes));
            damaged.resize(bytes.len(), 0);
            file[at..at + bytes.len()].copy_from_slice(&damaged);
        }
        at += bytes.len();
    }
    fs::write(&path, file).unwrap();
    let pack = Arc::new(Pack::open(&path).unwrap());
    let broken: Vec<bool> = (0..many).map(|index| pack.decode(index).is_err()).collect();
    let count = broken.iter().filter(|broken| **broken).count();
    let data = DataConfig {
        image_size: 12,
        ..DataConfig::default()
    };
    let view = ImageView::new(&data, &ViewConfig::default()).unwrap();
    let config = LoaderConfig {
        batch_size: 8,
        workers: 1,
        on_corrupt: OnCorrupt::Skip,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(pack.clone(), view, None, config).unwrap();
    let (mut batches, mut skipped) = (0, 0);
    let ((), taken) = benches::peak_of(|| {
        for batch in loader.epoch(0, 0).unwrap() {
            let batch = batch.unwrap();
            assert_eq!(batch.indices.len(), 8);
            assert!(batch.indices.iter().all(|index| !broken[*index as usize]));
            (batches, skipped) = (batches + 1, skipped + batch.skipped);
        }
    });
    eprintln!("loaded: {batches} batches, {count} of {many} damaged, {skipped} replaced");
    assert!(taken < MEMORY, "loading took {taken} bytes");
    assert_eq!(batches, many / 8);
    assert!(count > many / 10 && skipped >= count);
}

// One test, for the memory is counted for the whole process.
#[test]
fn no_file_is_trusted() {
    let many = mutations(10_000);
    survive("pack", &packs(), many, 1, |_, bytes| parsers::pack(&bytes));

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let formats = golden.with_file_name("formats");
    let endings = [
        ".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm", ".pgm", ".pbm", ".pam", ".qoi",
    ];
    let of = |folder: &Path| -> Vec<Vec<u8>> {
        endings
            .iter()
            .flat_map(|ending| files(folder, ending))
            .collect()
    };
    let images = [of(&golden), of(&formats)].concat();
    assert!(images.len() > 90);
    survive("image", &images, many, 2, |rng, mut bytes| {
        if bytes.starts_with(b"\x89PNG") && rng.random() {
            mend(&mut bytes);
        }
        parsers::image(&bytes);
    });

    let few = mutations(2_000);
    let channels = golden.with_file_name("channels");
    let deep =
        ["grey-16.png", "rgb-16.png", "rgba.png"].map(|name| fs::read(golden.join(name)).unwrap());
    let deep = [files(&channels, ".tif"), deep.to_vec()].concat();
    assert!(deep.len() > 12);
    survive("channels", &deep, many, 12, |_, bytes| {
        parsers::channels(&bytes)
    });
    #[cfg(feature = "jxl")]
    survive(
        "jxl",
        &files(&golden.with_file_name("jxl"), ".jxl"),
        few,
        13,
        |_, bytes| {
            parsers::image(&bytes);
        },
    );
    repack(&files(&golden, ".jpg"), few);
    let mut still = files(&formats, ".webp");
    still.retain(|bytes| !bytes.windows(4).any(|chunk| chunk == b"ANIM"));
    reload(&still, few);
    let annotation = "<annotation><object><name>dog</name><difficult>0</difficult><bndbox>\
        <xmin>48</xmin><ymin>240.5</ymin><xmax>195</xmax><ymax>371</ymax></bndbox></object>\
        <object><name>cat</name><part><name>head</name></part><bndbox><xmin>1</xmin><ymin>2</ymin>\
        <xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>";
    let text = vec![annotation.as_bytes().to_vec()];
    survive("voc", &text, few, 3, |_, bytes| parsers::voc(&bytes));
    let coco = br#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 21, "height": 13}], "annotations":
        [{"image_id": 1, "category_id": 3, "bbox": [1, 2.5, 3, 4], "iscrowd": 0, "segmentation": [[1, 2]]}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}]}"#;
    survive("coco", &[coco.to_vec()], few, 8, |_, bytes| {
        parsers::coco(&bytes)
    });
    let yolo = [
        &b"1 0.5 0.5 0.25 0.75\n0 0.1 0.1 0.2 0.1 0.3 0.4\n"[..],
        b"nc: 2\nnames:\n  0: a\n  1: 'b'\n",
    ];
    survive("yolo", &yolo.map(<[u8]>::to_vec), few, 9, |_, bytes| {
        parsers::yolo(&bytes)
    });
    let cvat = b"<annotations><image name='a.jpg' width='21' height='13'><box label='dog' xtl='1' ytl='2' \
        xbr='3.5' ybr='4'/><polygon label='cat' points='1,2;3,4;5,1'/></image></annotations>";
    survive("cvat", &[cvat.to_vec()], few, 10, |_, bytes| {
        parsers::cvat(&bytes)
    });
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("a.jpg", &images[0][..]),
        ("a.cls", b"3"),
        ("b.json", b"{\"label\": 1}"),
        ("b.png", &images[40]),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    survive("tar", &[archive], few, 11, |_, bytes| parsers::tar(&bytes));
    let list = b"a/1.jpg\t3\nb/2.jpg\t0\n# more\na b.jpg\t11\n".to_vec();
    let names = b"a/1.jpg\tdog\nb/2.jpg\tcat\n".to_vec();
    let csv = b"\xEF\xBB\xBFid,path,label\n1,\"a, 1.jpg\",dog\n2,b.jpg,\"c\"\"t\"\n".to_vec();
    survive("list", &[list, names, csv], few, 4, |_, bytes| {
        parsers::list(&bytes)
    });
    let classes = b"airplane\ndog\n\xC3\xA9l\xC3\xA9phant\n".to_vec();
    let set = b"1\n1  1\n2 -1\nmissing\n".to_vec();
    survive("names", &[classes, set], few, 15, |_, bytes| {
        parsers::names(&bytes)
    });
    let idx = [&b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02\0\0\0\x03"[..], &[7; 6]].concat();
    survive("idx", &[idx], few, 5, |_, bytes| parsers::idx(&bytes));
    let record = [vec![3; 3073], vec![9; 3073]].concat();
    survive("cifar", &[record], few, 6, |_, bytes| {
        parsers::cifar(&bytes)
    });
}
