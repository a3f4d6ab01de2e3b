//! `pirl doctor` on the CPU.

mod common;

use common::Bench;

/// Of a tiny network, so that little is timed.
const QUICK: [&str; 7] = [
    "doctor",
    "--recipe",
    "tiny.toml",
    "--batch-sizes",
    "2,4",
    "--seconds",
    "1",
];

#[test]
fn a_sound_cpu_passes_every_check_and_is_timed() {
    let bench = Bench::new();
    let report = bench.json(&QUICK);
    assert_eq!(report["passed"], true, "{report:#}");
    assert_eq!(report["device"]["name"], "cpu");
    assert!(report["device"]["threads"].as_u64().unwrap() >= 1);
    assert_eq!(report["versions"]["pirl"], env!("CARGO_PKG_VERSION"));
    assert!(report["versions"]["candle"].is_string() && report["versions"]["features"].is_array());
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 40, "{}", checks.len());
    for check in checks {
        let (error, tolerance) = (check["error"].as_f64(), check["tolerance"].as_f64());
        assert!(error.unwrap() <= tolerance.unwrap(), "{check}");
        assert_eq!(
            (&check["passed"], &check["ops"]),
            (&true.into(), &"fast".into())
        );
    }
    // Two implementations round differently somewhere: nothing is compared with itself.
    let differ = checks
        .iter()
        .filter(|check| check["error"].as_f64() > Some(0.0))
        .count();
    assert!(differ > checks.len() / 2, "{differ} of {}", checks.len());
    let steps = report["step"].as_array().unwrap();
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert!(step["images_per_second"].as_f64().unwrap() > 0.0, "{step}");
    }
    assert!(report["loader"]["images_per_second"].as_f64().unwrap() > 0.0);
    let limit = report["limit"].as_str().unwrap();
    assert!(["step", "loader"].contains(&limit));
    let verdict = report["verdict"].as_str().unwrap();
    assert!(
        verdict.contains("agree") && verdict.contains(limit),
        "{verdict}"
    );
}

#[test]
fn training_can_be_timed_without_the_checks() {
    let report = Bench::new().json(&[&QUICK[..], &["--skip-checks"]].concat());
    assert_eq!(report["checks"].as_array().unwrap().len(), 0);
    assert_eq!(report["step"].as_array().unwrap().len(), 2);
    // Only a GPU's memory is counted.
    assert!(report["step"][0]["memory_mib"].is_null());
    let verdict = report["verdict"].as_str().unwrap();
    assert!(verdict.contains("no op was compared"), "{verdict}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_gpu_without_cuda_in_the_build_is_told_what_to_build() {
    let message = Bench::new().fails(&["doctor", "--device", "cuda:0"]);
    assert!(message.contains("--features cuda"), "{message}");
}
