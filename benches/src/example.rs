use std::ffi::OsStr;
use std::process::Command;

/// Runs an example of the crate under test, which `cargo test` has built, and returns what it printed.
///
/// # Panics
/// If it is not built or fails.
pub fn run_example(name: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let test = std::env::current_exe();
    let test = test.unwrap_or_else(|error| panic!("the test's own path: {error}"));
    let built = test.ancestors().nth(2);
    let built = built.unwrap_or_else(|| panic!("{} lies in target/*/deps", test.display()));
    let program = built.join("examples").join(name);
    let output = Command::new(&program).args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program:?}: {error}; `cargo test` without `--test` builds the examples")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
