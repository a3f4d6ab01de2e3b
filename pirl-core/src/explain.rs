//! An error and its causes in one line.

use std::error::Error;

/// The chain of an error's causes, leaving out those that their effect has already quoted.
///
/// ```
/// let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
/// assert_eq!(pirl_core::explain(&missing), "no such file");
/// ```
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let mut text = String::new();
    for cause in causes {
        let cause = cause.to_string();
        if text.contains(cause.trim()) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause.trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_cause_already_quoted_is_not_said_twice() {
        let layer = |text, source: Option<Layer>| Layer {
            text,
            source: source.map(Box::new),
        };
        let cause = layer("no such file", None);
        let quotes = layer("cannot read x: no such file", Some(cause));
        let error = layer("opening the pack", Some(quotes));
        assert_eq!(
            explain(&error),
            "opening the pack: cannot read x: no such file"
        );
    }
}
