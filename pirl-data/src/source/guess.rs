//! Which format paths are of, where nobody says it.

use std::path::{Path, PathBuf};

use pirl_core::SettingError;

use super::SourceFormat;
use crate::DataError;

/// What the entries of a folder say, the first that fits: some are named so, or end so.
const ENTRIES: [(SourceFormat, &[&str], &[&str]); 7] = [
    (SourceFormat::Voc, &["JPEGImages", "Annotations"], &[]),
    (SourceFormat::Mnist, &[], &["-ubyte", "-ubyte.gz"]),
    (
        SourceFormat::Cifar10,
        &[
            "data_batch_1.bin",
            "test_batch.bin",
            "cifar-10-batches-bin",
            // Pickled; the reader says what to do.
            "data_batch_1",
            "test_batch",
            "cifar-10-batches-py",
        ],
        &[],
    ),
    (
        SourceFormat::Cifar100,
        &[
            "fine_label_names.txt",
            "cifar-100-binary",
            "cifar-100-python",
        ],
        &[],
    ),
    (SourceFormat::Parquet, &[], &[".parquet"]),
    (SourceFormat::WebDataset, &[], &[".tar"]),
    (SourceFormat::Yolo, &["data.yaml", "data.yml"], &[]),
];

/// What the ending of a file says.
const ENDINGS: [(SourceFormat, &[&str]); 6] = [
    (
        SourceFormat::List,
        &[".csv", ".tsv", ".txt", ".lst", ".list"],
    ),
    (SourceFormat::WebDataset, &[".tar"]),
    (SourceFormat::Parquet, &[".parquet"]),
    (SourceFormat::Coco, &[".json"]),
    (SourceFormat::Cvat, &[".xml"]),
    (SourceFormat::Mnist, &["-ubyte", "-ubyte.gz"]),
];

impl SourceFormat {
    /// The format of `inputs` by the names of files and of what is in folders; a folder that says
    /// nothing else is an [`ImageFolder`](super::ImageFolder). No file is opened.
    ///
    /// # Errors
    /// [`DataError::Setting`] of `format` if a file's name says nothing, if inputs differ, or if there is
    /// none; [`DataError::Io`] for one that does not exist or a folder that cannot be listed.
    pub fn guess(inputs: &[PathBuf]) -> Result<Self, DataError> {
        let cannot = |expected: String| SettingError::new("format", "absent", expected);
        let mut found: Option<(Self, &Path)> = None;
        for input in inputs {
            let format = of(input)?.ok_or_else(|| {
                cannot(format!(
                    "must be given: the name of {} does not say what it is",
                    input.display()
                ))
            })?;
            if let Some((first, path)) = found
                && first != format
            {
                let expected = format!(
                    "must be given: {} looks like {}, and {} like {}",
                    path.display(),
                    first.name(),
                    input.display(),
                    format.name()
                );
                return Err(cannot(expected).into());
            }
            found = found.or(Some((format, input)));
        }
        let found = found.map(|(format, _)| format);
        Ok(found.ok_or_else(|| cannot("must be given where there is no input".to_owned()))?)
    }
}

fn of(input: &Path) -> Result<Option<SourceFormat>, DataError> {
    let io = |action, path: &Path, source| DataError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    let kind = input.metadata().map_err(|error| io("find", input, error))?;
    if !kind.is_dir() {
        let name = input.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_lowercase();
        let fits = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        let found = ENDINGS.iter().find(|(_, endings)| fits(endings));
        return Ok(found.map(|(format, _)| *format));
    }
    let listed = input
        .read_dir()
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(|error| io("list", input, error))?;
    let names: Vec<String> = listed
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let has = |name: &str| names.iter().any(|other| other == name);
    let says = |(_, exact, endings): &&(SourceFormat, &[&str], &[&str])| {
        let ends = |name: &String| endings.iter().any(|ending| name.ends_with(ending));
        exact.iter().any(|name| has(name)) || names.iter().any(ends)
    };
    let found = ENTRIES.iter().find(says).map(|(format, ..)| *format);
    // As YOLO's programs write it. `images` alone may be a class, or a folder around them.
    let yolo = has("images") && has("labels");
    let found = found.or(yolo.then_some(SourceFormat::Yolo));
    Ok(Some(found.unwrap_or(SourceFormat::ImageFolder)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Makes the paths, those that end in `/` as folders, and guesses the format of `input` among them.
    fn guessed(paths: &[&str], inputs: &[&str]) -> Result<SourceFormat, String> {
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if path.to_string_lossy().ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::write(path, b"").unwrap();
            }
        }
        let inputs: Vec<_> = inputs
            .iter()
            .map(|input| folder.path().join(input))
            .collect();
        SourceFormat::guess(&inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn every_format_is_told_by_its_names() {
        use SourceFormat::{
            Cifar10, Cifar100, Coco, Cvat, ImageFolder, List, Mnist, Parquet, Voc, WebDataset, Yolo,
        };
        let folders: [(&[&str], SourceFormat); 15] = [
            (&["x/cat/1.jpg", "x/dog/2.jpg"], ImageFolder),
            (&["x/1.jpg", "x/class_names.txt"], ImageFolder),
            (&["x/images/1.jpg"], ImageFolder),
            (&["x/"], ImageFolder),
            (&["x/JPEGImages/1.jpg", "x/ImageSets/"], Voc),
            (&["x/Annotations/1.xml", "x/images/1.jpg"], Voc),
            (&["x/train-images-idx3-ubyte.gz"], Mnist),
            (&["x/data_batch_1.bin"], Cifar10),
            (&["x/cifar-10-batches-bin/data_batch_1.bin"], Cifar10),
            (&["x/data_batch_1"], Cifar10),
            (&["x/cifar-100-binary/train.bin"], Cifar100),
            (&["x/train.bin", "x/fine_label_names.txt"], Cifar100),
            (&["x/train-00000-of-00002.parquet"], Parquet),
            (&["x/0000.tar"], WebDataset),
            (&["x/images/", "x/labels/"], Yolo),
        ];
        for (paths, expected) in folders {
            assert_eq!(guessed(paths, &["x"]), Ok(expected), "{paths:?}");
        }
        for (name, expected) in [
            ("a.CSV", List),
            ("a.txt", List),
            ("a.tar", WebDataset),
            ("a.parquet", Parquet),
            ("instances.json", Coco),
            ("annotations.xml", Cvat),
            ("t10k-images-idx3-ubyte", Mnist),
        ] {
            assert_eq!(guessed(&[name], &[name]), Ok(expected), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_an_error_that_names_it() {
        let error = guessed(&["a.bin"], &["a.bin"]).unwrap_err();
        assert!(
            error.contains("format") && error.contains("a.bin"),
            "{error}"
        );
        let error = guessed(&["a.csv", "b.tar"], &["a.csv", "b.tar"]).unwrap_err();
        let named = ["a.csv looks like list", "b.tar like webdataset"];
        assert!(named.iter().all(|part| error.contains(part)), "{error}");
        let error = guessed(&[], &["nothing"]).unwrap_err();
        assert!(
            error.contains("cannot find") && error.contains("nothing"),
            "{error}"
        );
        assert!(guessed(&[], &[]).is_err());
    }
}
