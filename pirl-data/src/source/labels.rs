//! From labels as files write them, integers or names, to numbers and class names.

use std::collections::BTreeSet;

/// The largest label that may be used, so that a stray number is an error and not a class list of
/// a thousand million names.
const MAX_LABEL: u32 = 1_000_000;

/// Labels and class names.
pub(super) type Numbered = (Vec<Option<u32>>, Vec<String>);

/// Labels that are all integers from 0 stay as they are, and the classes are called "0", "1", ... up to
/// the largest; otherwise they are class names, numbered in sorted order.
///
/// # Errors
/// The place of an integer outside of the range, and what is wrong with it.
pub(super) fn number(given: &[Option<String>]) -> Result<Numbered, (usize, String)> {
    let labels = || given.iter().flatten().map(String::as_str);
    let is_integer =
        |label: &str| label.parse::<i64>().is_ok() || label.bytes().all(|b| b.is_ascii_digit());
    if !labels().all(is_integer) {
        let names: BTreeSet<&str> = labels().collect();
        let names: Vec<&str> = names.into_iter().collect();
        let place = |name: &String| {
            let place = names.binary_search(&name.as_str()).ok();
            place.and_then(|place| u32::try_from(place).ok())
        };
        let numbered = given
            .iter()
            .map(|label| label.as_ref().and_then(place))
            .collect();
        return Ok((numbered, names.into_iter().map(str::to_owned).collect()));
    }
    let mut numbered = Vec::with_capacity(given.len());
    for (place, label) in given.iter().enumerate() {
        numbered.push(match label {
            None => None,
            Some(label) => match label.parse::<u32>() {
                Ok(value) if value <= MAX_LABEL => Some(value),
                _ => return Err((place, format!("label {label} is outside 0..={MAX_LABEL}"))),
            },
        });
    }
    let classes = numbered.iter().flatten().max().map_or(0, |label| label + 1);
    Ok((
        numbered,
        (0..classes).map(|label| label.to_string()).collect(),
    ))
}
