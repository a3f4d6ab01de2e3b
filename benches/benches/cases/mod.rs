//! The cases of `peers/cases.json`, which our PyTorch twin reads too.

use std::collections::HashMap;

use serde::Deserialize;

/// The table `kind` of `peers/cases.json`.
pub(crate) fn cases<T: for<'de> Deserialize<'de>>(kind: &str) -> HashMap<String, T> {
    let mut all: HashMap<String, serde_json::Value> =
        serde_json::from_str(include_str!("../../peers/cases.json")).expect("cases.json is JSON");
    let cases = all.remove(kind).expect("a kind of case");
    serde_json::from_value(cases).expect("cases of that kind")
}
