use std::fmt::Display;
use std::io::Write;

/// What the test called `test` needs; if it is not there, `None`, and a line that says why it is skipped.
pub fn or_skip<T, E: Display>(test: &str, found: Result<T, E>) -> Option<T> {
    // Straight to the stream: the harness hides what a passing test prints.
    found
        .inspect_err(|error| {
            let _ = writeln!(std::io::stderr(), "{test}: skipped, {error}");
        })
        .ok()
}
