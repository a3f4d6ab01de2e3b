//! Saved banks: equal when loaded, whole or absent, and never trusted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::Device;
use memmap2::Mmap;
use pirl_bank::{BankError, MemoryBank};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn random(seed: u64) -> MemoryBank {
    MemoryBank::random(40, 6, 0.5, seed, &Device::Cpu).unwrap()
}

fn matrix(bank: &MemoryBank) -> Vec<Vec<f32>> {
    bank.rows().to_vec2().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn loading_gives_back_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank.safetensors");
    let mut bank = random(3);
    bank.update(&[5, 1], random(4).rows().narrow(0, 0, 2).as_ref().unwrap())
        .unwrap();
    bank.save(&path).unwrap();
    let loaded = MemoryBank::load(&path, 40, 6, 0.25).unwrap();
    assert_eq!(matrix(&loaded), matrix(&bank));
    assert_eq!(loaded.momentum(), 0.25);
    assert_eq!(names(folder.path()), ["bank.safetensors"]);

    // Any reader of safetensors finds the tensor under its name.
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("memory").unwrap().shape(), [40, 6]);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    assert_eq!(metadata["format"], "pirl-bank-1");
    assert_eq!(metadata["momentum"], "0.5");
}

#[test]
fn saving_over_a_mapped_file_leaves_the_map() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank.safetensors");
    random(3).save(&path).unwrap();
    let old = fs::read(&path).unwrap();
    // SAFETY: nothing writes to the mapped file; that `save` does not is what is tested.
    let map = unsafe { Mmap::map(&File::open(&path).unwrap()) }.unwrap();
    random(4).save(&path).unwrap();
    assert_eq!(map[..], old[..]);
    assert_eq!(
        matrix(&MemoryBank::load(&path, 40, 6, 0.5).unwrap()),
        matrix(&random(4))
    );
}

#[test]
#[cfg(unix)]
fn a_saved_file_may_be_read_by_whoever_may_read_its_neighbours() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        let metadata = fs::metadata(folder.path().join(name)).unwrap();
        metadata.permissions().mode()
    };
    fs::write(folder.path().join("neighbour"), "").unwrap();
    random(1).save(folder.path().join("bank")).unwrap();
    assert_eq!(mode("bank"), mode("neighbour"));
    random(2).save(folder.path().join("bank")).unwrap();
    assert_eq!(mode("bank"), mode("neighbour"), "over an earlier one");
}

#[test]
fn a_save_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let error = random(3)
        .save(folder.path().join("missing/bank.safetensors"))
        .unwrap_err();
    assert!(
        matches!(
            error,
            BankError::Io {
                action: "write",
                ..
            }
        ),
        "{error}"
    );
    // The target is a folder, so that the rename is what fails.
    fs::create_dir_all(folder.path().join("bank.safetensors/full")).unwrap();
    let error = random(3)
        .save(folder.path().join("bank.safetensors"))
        .unwrap_err();
    assert!(
        matches!(
            error,
            BankError::Io {
                action: "write",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(names(folder.path()), ["bank.safetensors"]);
}

#[test]
fn another_size_is_an_error_that_says_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank.safetensors");
    random(3).save(&path).unwrap();
    for (rows, dim) in [(41, 6), (40, 5)] {
        let error = MemoryBank::load(&path, rows, dim, 0.5)
            .unwrap_err()
            .to_string();
        let want = format!("holds a bank of 40 rows of 6, expected {rows} rows of {dim}");
        assert!(
            error.contains(&want) && error.contains("bank.safetensors"),
            "{error}"
        );
    }
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank.safetensors");
    let missing = MemoryBank::load(&path, 40, 6, 0.5).unwrap_err();
    assert!(
        matches!(missing, BankError::Io { action: "read", .. }),
        "{missing}"
    );

    random(3).save(&path).unwrap();
    let good = fs::read(&path).unwrap();
    // Cut anywhere, also to nothing.
    for length in (0..good.len()).step_by(13) {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            MemoryBank::load(&path, 40, 6, 0.5).is_err(),
            "cut to {length} bytes"
        );
    }
    // The top byte of a number of row 39 changed: the row is no unit vector any more.
    let mut bytes = good.clone();
    *bytes.last_mut().unwrap() ^= 0x7F;
    fs::write(&path, &bytes).unwrap();
    let error = MemoryBank::load(&path, 40, 6, 0.5).unwrap_err();
    assert!(
        matches!(error, BankError::NotUnit { row: 39, .. }),
        "{error}"
    );
    // Each byte of the header in turn; some changes are harmless (a name in the metadata), and
    // then the rows must be whole.
    let header = good.len() - 40 * 6 * 4;
    for at in 0..header {
        let mut bytes = good.clone();
        bytes[at] ^= 0x15;
        fs::write(&path, &bytes).unwrap();
        if let Ok(bank) = MemoryBank::load(&path, 40, 6, 0.5) {
            assert_eq!(matrix(&bank), matrix(&random(3)), "byte {at}");
        }
    }
}

#[test]
fn other_safetensors_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let bank = || {
        Some(HashMap::from([(
            "format".to_owned(),
            "pirl-bank-1".to_owned(),
        )]))
    };
    for (metadata, name, dtype, shape, message) in [
        (
            bank(),
            "weight",
            Dtype::F32,
            vec![4, 2],
            "it has no tensor `memory`",
        ),
        (
            bank(),
            "memory",
            Dtype::I32,
            vec![4, 2],
            "`memory` is [4, 2] of I32, not a matrix of F32",
        ),
        (
            bank(),
            "memory",
            Dtype::F32,
            vec![8],
            "`memory` is [8] of F32, not a matrix of F32",
        ),
        (
            None,
            "memory",
            Dtype::F32,
            vec![4, 2],
            "says format None, not \"pirl-bank-1\"",
        ),
    ] {
        let view = TensorView::new(dtype, shape, &[0; 32]).unwrap();
        serialize_to_file([(name, view)], metadata, &path).unwrap();
        let error = MemoryBank::load(&path, 4, 2, 0.5).unwrap_err().to_string();
        assert!(
            error.contains(message),
            "{error:?} does not say {message:?}"
        );
    }
}
