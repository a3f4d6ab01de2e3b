//! Features in files for other programs: the very numbers that probes use, in the pack's order.

mod common;

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::{config, network, packed, view};
use pirl_data::{Pack, eval_batches};
use pirl_eval::{Embedder, EvalError, Extraction, FeatureSet, Pool, embed, extract_features};
use pirl_model::{
    Backbone, Head, HeadKind, Layer, Mode, ModelConfig, ProjectionHead, Trainable, save_state_dict,
};
use pirl_train::read_image_head;
use safetensors::SafeTensors;

const CLASSES: [&str; 2] = ["a, \"quoted\" class", "b"];

fn extraction(layers: &[Layer]) -> Extraction {
    Extraction {
        layers: layers.to_vec(),
        pool: Pool::Grid.into(),
        batch_size: 4,
        workers: 2,
        ..Extraction::new(view())
    }
}

fn write(pack: &Pack, layers: &[Layer], output: &Path) -> Result<FeatureSet, EvalError> {
    let (backbone, extraction) = (network(3), extraction(layers));
    let notes = [("weights", "random, of seed 3".to_owned())];
    let found = embed(&backbone, pack, &extraction, &notes, output, &mut |_, _| {})?;
    let expected = extract_features(&backbone, pack, &extraction, &mut |_, _| {})?;
    assert_eq!(found.images, pack.len());
    for features in expected.layers() {
        assert_eq!(found.layers[features.layer()], features.dim());
    }
    assert_eq!(found.layers.len(), layers.len());
    Ok(expected)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.chunks_exact(4);
    words
        .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// The columns `index`, `label`, `class` and `name` of a table, as the pack has them.
fn assert_labels(rows: &[csv::StringRecord], pack: &Pack) {
    assert_eq!(rows.len(), pack.len());
    for (index, row) in rows.iter().enumerate() {
        let label = pack.label(index);
        let class = label.map_or("", |label| &pack.class_names()[label as usize]);
        let label = label.map_or(String::new(), |label| label.to_string());
        let name = pack.name(index).unwrap();
        assert!(
            name.ends_with(&format!("{index:03}.png")) || !class.is_empty(),
            "{name}"
        );
        assert_eq!(
            (&row[0], &row[1], &row[2], &row[3]),
            (&*index.to_string(), &*label, class, name)
        );
    }
}

fn table(path: &Path) -> (csv::StringRecord, Vec<csv::StringRecord>) {
    let mut table = csv::Reader::from_path(path).unwrap();
    let names = table.headers().unwrap().clone();
    (names, table.records().collect::<Result<_, _>>().unwrap())
}

#[test]
fn files_hold_the_features_that_probes_use() {
    let folder = tempfile::tempdir().unwrap();
    let two = [Layer::RES3, Layer::RES5];
    for classes in [&CLASSES[..], &[]] {
        let pack = packed(folder.path(), "pack", classes, 11, 1);
        let path = |ending: &str| folder.path().join(format!("out.{ending}"));

        let set = write(&pack, &two[1..], &path("npy")).unwrap();
        let (bytes, features) = (fs::read(path("npy")).unwrap(), &set.layers()[0]);
        let shape = format!("'shape': (11, {}), ", features.dim());
        assert!(String::from_utf8_lossy(&bytes[10..128]).contains(&shape));
        assert_eq!(floats(&bytes[128..]), features.values());
        let (names, rows) = table(&path("labels.csv"));
        assert_eq!(names, ["index", "label", "class", "name"][..]);
        assert_labels(&rows, &pack);

        let set = write(&pack, &two, &path("csv")).unwrap();
        let (names, rows) = table(&path("csv"));
        let [a, b] = [0, 1].map(|layer| set.layers()[layer].dim());
        let ends = [
            names[4].to_owned(),
            names[4 + a].to_owned(),
            names[3 + a + b].to_owned(),
        ];
        assert_eq!(
            ends,
            [
                "res3_0".to_owned(),
                "res5_0".to_owned(),
                format!("res5_{}", b - 1)
            ]
        );
        assert_labels(&rows, &pack);
        for (index, row) in rows.iter().enumerate() {
            let values: Vec<f32> = row.iter().skip(4).map(|x| x.parse().unwrap()).collect();
            let layers = set.layers().iter();
            let expected: Vec<f32> = layers
                .flat_map(|layer| layer.values()[index * layer.dim()..][..layer.dim()].to_vec())
                .collect();
            assert_eq!(values, expected, "to the bit");
        }

        let set = write(&pack, &two, &path("safetensors")).unwrap();
        let bytes = fs::read(path("safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for layer in set.layers() {
            let tensor = file.tensor(layer.layer().as_str()).unwrap();
            assert_eq!(tensor.shape(), [11, layer.dim()]);
            assert_eq!(floats(tensor.data()), layer.values());
        }
        let labels = file.tensor("labels").unwrap();
        let labels = labels.data().chunks_exact(8);
        let labels: Vec<i64> = labels
            .map(|word| i64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let expected = (0..11).map(|index| pack.label(index).map_or(-1, i64::from));
        assert_eq!(labels, expected.collect::<Vec<_>>());
        let ends = file.tensor("name_offsets").unwrap();
        let ends = ends.data().chunks_exact(8);
        let ends: Vec<usize> = ends
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()) as usize)
            .collect();
        let text = file.tensor("names").unwrap();
        let text = std::str::from_utf8(text.data()).unwrap();
        assert_eq!((ends.len(), ends[11]), (12, text.len()));
        for index in 0..11 {
            assert_eq!(Some(&text[ends[index]..ends[index + 1]]), pack.name(index));
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let notes = header.metadata().as_ref().unwrap();
        assert_eq!(notes["weights"], "random, of seed 3");
        let names: Vec<String> = serde_json::from_str(&notes["class_names"]).unwrap();
        assert_eq!(names, pack.class_names());
        fs::remove_dir_all(folder.path().join("pack-images")).unwrap();
        fs::remove_file(folder.path().join("pack.safetensors")).unwrap();
    }
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_has_a_list_for_each_layer() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "pack", &CLASSES, 11, 1);
    let path = folder.path().join("out.parquet");
    let set = write(&pack, &[Layer::RES3, Layer::RES5], &path).unwrap();
    let file = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let mut rows = 0;
    for (index, row) in file.get_row_iter(None).unwrap().enumerate() {
        let row = row.unwrap();
        let label = pack.label(index).unwrap();
        assert_eq!(row.get_long(0).unwrap(), index as i64);
        assert_eq!(row.get_long(1).unwrap(), i64::from(label));
        assert_eq!(row.get_string(2).unwrap(), CLASSES[label as usize]);
        assert_eq!(Some(&**row.get_string(3).unwrap()), pack.name(index));
        for (place, layer) in set.layers().iter().enumerate() {
            let list = row.get_list(4 + place).unwrap();
            let values = list.elements().iter().map(|field| match field {
                parquet::record::Field::Float(value) => *value,
                other => panic!("{other:?}"),
            });
            let expected = &layer.values()[index * layer.dim()..][..layer.dim()];
            assert_eq!(values.collect::<Vec<_>>(), expected);
        }
        rows += 1;
    }
    assert_eq!(rows, 11);
    let unlabelled = packed(folder.path(), "flat", &[], 3, 1);
    write(&unlabelled, &[Layer::RES5], &path).unwrap();
    let file = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    for row in file.get_row_iter(None).unwrap() {
        let row = row.unwrap();
        assert!(
            row.get_long(1).is_err() && row.get_string(2).is_err(),
            "null: {row}"
        );
    }
}

#[test]
fn what_a_file_cannot_hold_is_refused_and_a_failure_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "pack", &CLASSES, 5, 1);
    let refused = |name: &str, layers: &[Layer], wanted: &[&str]| {
        let path = folder.path().join(name);
        let message = write(&pack, layers, &path).unwrap_err().to_string();
        for part in wanted {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    refused("a.txt", &[Layer::RES5], &["a.txt", ".npy", ".safetensors"]);
    refused("a", &[Layer::RES5], &[".parquet"]);
    refused(
        "a.npy",
        &[Layer::RES4, Layer::RES5],
        &["a.npy", "one layer", ".safetensors"],
    );
    refused("absent/a.npy", &[Layer::RES5], &["absent/a.labels.csv"]);
    refused(
        "a.csv",
        &[Layer::new("embedding")],
        &["embedding", "res5avg"],
    );
    if cfg!(not(feature = "parquet")) {
        refused("a.parquet", &[Layer::RES5], &["--features parquet", ".npy"]);
    }
    let path = folder.path().join("a.csv");
    fs::write(&path, "old").unwrap();
    let broken = network(3);
    let mut state = broken.state().unwrap();
    let bias = Tensor::full(f32::NAN, 128, &Device::Cpu).unwrap();
    state.insert("layer4.1.bn2.bias".to_owned(), bias);
    broken.load(&state).unwrap();
    let extraction = extraction(&[Layer::RES5]);
    let error = embed(&broken, &pack, &extraction, &[], &path, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, EvalError::NotFinite { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    let left = fs::read_dir(folder.path()).unwrap();
    let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{names:?}"
    );
}

#[test]
fn embeddings_are_those_of_the_checkpoints_head() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "pack", &CLASSES, 6, 1);
    for head in [HeadKind::Linear, HeadKind::Mlp] {
        let config = ModelConfig { head, ..config() };
        let backbone = network(3);
        let f = ProjectionHead::new(&config, backbone.feature_dim(), 24, 5, &Device::Cpu).unwrap();
        let file = folder.path().join("model.safetensors");
        save_state_dict(&file, &[("", &backbone), ("head.f.", &f)]).unwrap();
        let batches = eval_batches(&pack, &view(), 6, 1, &Device::Cpu).unwrap();
        let images: Vec<Tensor> = batches.map(|batch| batch.unwrap().0).collect();
        let features = backbone.forward(&images[0], Mode::Eval).unwrap();
        let expected = f.forward(&features, Mode::Eval).unwrap();
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();

        // The backbone's own file lies beside that with the heads.
        let weights = folder.path().join("backbone.safetensors");
        let f = read_image_head(&weights, &common::config(), &Device::Cpu).unwrap();
        let embedder = Embedder::new(backbone, f);
        assert_eq!(embedder.feature_dim(), 24);
        let layers = [Layer::new("embedding"), Layer::RES4];
        let set = extract_features(&embedder, &pack, &extraction(&layers), &mut |_, _| {}).unwrap();
        let [embeddings, res4] = set.layers() else {
            panic!()
        };
        assert_eq!((embeddings.dim(), res4.layer()), (24, &Layer::RES4));
        for (row, expected) in embeddings.values().chunks(24).zip(expected.chunks(24)) {
            assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
            let length: f32 = row.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
    }
    let file = folder.path().join("model.safetensors");
    save_state_dict(&file, &[("", &network(3))]).unwrap();
    let error = read_image_head(&file, &config(), &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("head f"),
        "{error}"
    );
}
