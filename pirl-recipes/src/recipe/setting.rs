//! A single setting, as it is typed.

use std::fmt;
use std::str::FromStr;

use toml::{Table, Value};

use super::overlay::leaves;
use crate::error::{RecipeError, Result};

/// One key with its value, `key=value`: what `--set` takes on the command line.
///
/// ```
/// use pirl_recipes::Setting;
///
/// let setting: Setting = "train={ epochs = 8, batch_size = 64 }".parse()?;
/// assert!(setting.sets("train.epochs") && !setting.sets("train.steps"));
/// # Ok::<(), pirl_recipes::RecipeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Setting {
    pub(super) key: String,
    pub(super) value: Value,
}

impl Setting {
    /// The key `key`, which may be a table's, with `value`. Whether there is such a key shows when a recipe
    /// is loaded.
    pub fn new(key: impl Into<String>, value: Value) -> Self {
        let key = key.into();
        Self { key, value }
    }

    /// Every key of `table`.
    pub fn of_table(table: &Table) -> Vec<Self> {
        let all = leaves(table).into_iter();
        all.map(|(key, value)| Self { key, value }).collect()
    }

    /// Whether it sets the key `key`, by itself or in a table.
    pub fn sets(&self, key: &str) -> bool {
        let rest = key.strip_prefix(self.key.as_str());
        match (&self.value, rest.and_then(|rest| rest.strip_prefix('.'))) {
            (Value::Table(table), Some(rest)) => leaves(table).iter().any(|(key, _)| key == rest),
            _ => self.key == key,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl FromStr for Setting {
    type Err = RecipeError;

    /// The value is TOML where it parses as TOML, else a string: `model.arch=resnet18`. Whether there is
    /// such a key shows when a recipe is loaded.
    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| RecipeError::NotASetting {
                text: text.to_owned(),
            })?;
        let parsed = format!("value = {value}")
            .parse::<Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"));
        Ok(Self {
            key: key.trim().to_owned(),
            value: parsed.unwrap_or_else(|| Value::String(value.to_owned())),
        })
    }
}
