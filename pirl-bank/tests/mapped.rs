//! A bank in a mapped file has the rows of one in memory, and goes back to a checkpoint whatever
//! happened since.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use candle_core::{Device, Tensor};
use pirl_bank::{BankPrecision, MappedBank, MappedConfig, MemoryBank};

const ROWS: usize = 10_000;
const DIM: usize = 16;

fn config(precision: BankPrecision) -> MappedConfig {
    MappedConfig {
        first: 0,
        rows: ROWS,
        dim: DIM,
        momentum: 0.5,
        precision,
        seed: 7,
    }
}

fn open(folder: &Path) -> MappedBank {
    MappedBank::open(folder, &config(BankPrecision::F32)).unwrap()
}

/// The images and embeddings of a step.
fn step(step: u64) -> (Vec<u32>, Tensor) {
    let indices: Vec<u32> = (0..64)
        .map(|k| ((step * 617 + k * 131) % ROWS as u64) as u32)
        .collect();
    let embeddings = MemoryBank::random(64, DIM, 0.5, 100 + step, &Device::Cpu).unwrap();
    (indices, embeddings.rows().clone())
}

fn all(bank: &MappedBank) -> Vec<f32> {
    let rows: Vec<u32> = (0..ROWS as u32).collect();
    bank.gather(&rows)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn in_memory(steps: std::ops::Range<u64>) -> Vec<f32> {
    let mut bank = MemoryBank::random(ROWS, DIM, 0.5, 7, &Device::Cpu).unwrap();
    for (indices, embeddings) in steps.map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
    bank.rows().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn its_rows_are_those_of_a_bank_in_memory_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = open(folder.path());
    assert!(all(&bank) == in_memory(0..0), "the rows it begins with");
    for (indices, embeddings) in (0..20).map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
    assert!(all(&bank) == in_memory(0..20));
    drop(bank);
    assert!(
        all(&open(folder.path())) == in_memory(0..20),
        "opened again"
    );
    let share = MappedConfig {
        first: 9_000,
        rows: 1_000,
        ..config(BankPrecision::F32)
    };
    let share = MappedBank::open(folder.path().join("share"), &share).unwrap();
    let rows = share
        .gather(&[0, 999])
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let whole = in_memory(0..0);
    assert_eq!(rows[..DIM], whole[9_000 * DIM..9_001 * DIM]);
    assert_eq!(rows[DIM..], whole[9_999 * DIM..]);
}

#[test]
fn in_bf16_rows_are_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = MappedBank::open(folder.path(), &config(BankPrecision::Bf16)).unwrap();
    let (indices, embeddings) = step(0);
    bank.update(&indices, &embeddings).unwrap();
    let found = all(&bank);
    let expected = in_memory(0..1);
    let error = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs() / b.abs().max(1e-3));
    let worst = error.fold(0.0, f32::max);
    assert!(worst > 0.0 && worst <= 1.0 / 256.0, "{worst}");
}

#[test]
fn it_goes_back_to_the_last_two_marks_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = open(folder.path());
    for at in 0..30 {
        if at % 10 == 0 {
            bank.mark(at).unwrap();
        }
        let (indices, embeddings) = step(at);
        bank.update(&indices, &embeddings).unwrap();
    }
    drop(bank);
    let mut bank = open(folder.path());
    let error = bank.go_back(0).unwrap_err().to_string();
    assert!(error.contains("[10, 20]"), "{error}");
    bank.go_back(20).unwrap();
    assert!(all(&bank) == in_memory(0..20));
    bank.go_back(10).unwrap();
    assert!(all(&bank) == in_memory(0..10));
    for (indices, embeddings) in (10..30).map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
    assert!(all(&bank) == in_memory(0..30));
}

#[test]
fn damaged_or_other_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = open(folder.path());
    for (indices, embeddings) in (0..2).map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
    drop(bank);
    let log = folder.path().join("undo-00000000");
    let whole = fs::read(&log).unwrap();
    // A record that was cut off is of an update that had not begun.
    fs::write(&log, &whole[..whole.len() - 1]).unwrap();
    open(folder.path()).go_back(0).unwrap();
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    fs::write(&log, &damaged).unwrap();
    let error = open(folder.path()).go_back(0).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    let other = MappedConfig {
        seed: 8,
        ..config(BankPrecision::F32)
    };
    assert!(MappedBank::open(folder.path(), &other).is_err());
    let rows = OpenOptions::new()
        .write(true)
        .open(folder.path().join("rows.bin"))
        .unwrap();
    rows.set_len(100).unwrap();
    let error = MappedBank::open(folder.path(), &config(BankPrecision::F32))
        .unwrap_err()
        .to_string();
    assert!(error.contains("100 bytes"), "{error}");
}

/// Not a test of its own: what the next one kills.
#[test]
fn updates_without_end() {
    let Ok(folder) = std::env::var("PIRL_BANK_FOLDER") else {
        return;
    };
    let mut bank = open(Path::new(&folder));
    bank.go_back(5).unwrap();
    for (indices, embeddings) in (5..).map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
}

#[test]
fn killed_at_any_instant_it_goes_back_to_its_mark() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = open(folder.path());
    for (indices, embeddings) in (0..5).map(step) {
        bank.update(&indices, &embeddings).unwrap();
    }
    bank.mark(5).unwrap();
    drop(bank);
    let expected = in_memory(0..5);
    let mut interrupted = 0;
    for round in 0..30 {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--exact", "updates_without_end"])
            .env("PIRL_BANK_FOLDER", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(60_000 + 1_700 * round));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let log = fs::metadata(folder.path().join("undo-00000005")).unwrap();
        interrupted += u32::from(log.len() > 0);
        let mut bank = open(folder.path());
        bank.go_back(5).unwrap();
        assert!(all(&bank) == expected, "round {round}");
    }
    assert!(
        interrupted > 5,
        "updates were under way in {interrupted} rounds of 30"
    );
}
