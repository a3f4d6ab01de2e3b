//! Settings outside their range.

use std::fmt::Display;

/// A setting with a value that cannot work.
///
/// A library names the field of its own struct; [`SettingError::within`] adds the table that the
/// struct is in a recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {expected}")]
pub struct SettingError {
    /// The field, with the tables it is in: `lr`, `optim.lr`.
    pub field: String,
    /// What it is.
    pub value: String,
    /// What it must be, and the way out if there is more to say.
    pub expected: String,
}

impl SettingError {
    /// Says that `field` is `value`, but `expected`: "must be at least 1".
    pub fn new(field: &str, value: impl Display, expected: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// The same of a field of the table `table`.
    #[must_use]
    pub fn within(self, table: &str) -> Self {
        Self {
            field: format!("{table}.{}", self.field),
            ..self
        }
    }
}

/// An error unless `holds`, which says whether `value` is one that works.
///
/// # Errors
/// [`SettingError`], with all that is given here.
pub fn check(
    field: &str,
    value: impl Display,
    holds: bool,
    expected: &str,
) -> Result<(), SettingError> {
    if holds {
        return Ok(());
    }
    Err(SettingError::new(field, value, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_field_value_and_way_out() {
        assert!(check("lr", 0.1, true, "must be positive").is_ok());
        let error = check("lr", f64::NAN, false, "must be positive").unwrap_err();
        assert_eq!(error.to_string(), "lr = NaN: must be positive");
        let inner = error.within("optim").within("detect").within("eval");
        assert_eq!(inner.field, "eval.detect.optim.lr");
    }
}
