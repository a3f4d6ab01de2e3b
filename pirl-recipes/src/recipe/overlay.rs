//! Laying one TOML table over another that holds every key there is.

use toml::{Table, Value};

use crate::error::KeyError;

type Result<T> = std::result::Result<T, KeyError>;

/// Every key of `table` that is not itself a table, by its dotted name, in order.
pub(super) fn leaves(table: &Table) -> Vec<(String, Value)> {
    fn walk(table: &Table, prefix: &str, found: &mut Vec<(String, Value)>) {
        for (key, value) in table {
            let key = join(prefix, key);
            match value {
                Value::Table(inner) => walk(inner, &key, found),
                leaf => found.push((key, leaf.clone())),
            }
        }
    }
    let mut found = Vec::new();
    walk(table, "", &mut found);
    found
}

/// Lays `over` on `full`, which holds every known key with a value of its type.
pub(super) fn apply(full: &mut Table, over: Table) -> Result<()> {
    let known = leaves(full);
    for (key, value) in leaves(&over) {
        place(full, &known, &key, value)?;
    }
    Ok(())
}

/// Sets one dotted key; a table sets the keys it holds.
pub(super) fn set(full: &mut Table, key: &str, value: Value) -> Result<()> {
    let known = leaves(full);
    match value {
        Value::Table(inner) => {
            for (inner_key, value) in leaves(&inner) {
                place(full, &known, &join(key, &inner_key), value)?;
            }
            Ok(())
        }
        value => place(full, &known, key, value),
    }
}

fn place(full: &mut Table, known: &[(String, Value)], key: &str, value: Value) -> Result<()> {
    let mut segments: Vec<&str> = key.split('.').collect();
    let last = segments.pop().unwrap_or_default();
    let mut table = full;
    for segment in segments {
        table = match table.get_mut(segment) {
            Some(Value::Table(inner)) => inner,
            _ => return Err(unknown(key, known)),
        };
    }
    match table.get_mut(last) {
        None => Err(unknown(key, known)),
        Some(Value::Table(_)) => Err(KeyError::Table {
            key: key.to_owned(),
            found: value.type_str(),
        }),
        Some(slot) => {
            *slot = fit(slot, value, key)?;
            Ok(())
        }
    }
}

/// Settings that are a name or a list of names.
const SEVERAL: [&str; 1] = ["eval.pool"];

/// `value` in the type of `old`: an integer may stand for a float, a single item for a list of one, and a list
/// for one name of [`SEVERAL`].
fn fit(old: &Value, value: Value, key: &str) -> Result<Value> {
    Ok(match (old, value) {
        (Value::Float(_), Value::Integer(number)) => Value::Float(number as f64),
        (Value::Array(old), Value::Array(new)) => match old.first() {
            Some(first) => Value::Array(
                new.into_iter()
                    .map(|item| fit(first, item, key))
                    .collect::<Result<_>>()?,
            ),
            None => Value::Array(new),
        },
        (Value::Array(old), item) => match old.first() {
            Some(first) => Value::Array(vec![fit(first, item, key)?]),
            None => Value::Array(vec![item]),
        },
        (old, value) if old.same_type(&value) => value,
        (Value::String(_), Value::Array(names)) if SEVERAL.contains(&key) => Value::Array(names),
        (old, value) => {
            return Err(KeyError::Type {
                key: key.to_owned(),
                expected: old.type_str(),
                found: value.type_str(),
                value: value.to_string(),
            });
        }
    })
}

fn unknown(key: &str, known: &[(String, Value)]) -> KeyError {
    KeyError::Unknown {
        key: key.to_owned(),
        nearest: nearest(key, known.iter().map(|(key, _)| key.as_str())).map(str::to_owned),
    }
}

/// The name most like `wanted`, compared as a whole and by the part after the last dot, if any is
/// like it at all.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.8;
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let wanted_last = wanted.rsplit('.').next().unwrap_or(wanted);
    names
        .map(|name| {
            let whole = strsim::jaro_winkler(wanted, name);
            // A match of the last part alone counts a little less.
            let part = strsim::jaro_winkler(wanted_last, last(name)) * 0.97;
            (whole.max(part), name)
        })
        .filter(|(score, _)| *score > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}
