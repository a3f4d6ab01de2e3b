//! Recipes and keys, a line each.

use super::embedded::{RECIPES, key_notes};
use super::tables::Recipe;
use crate::error::Result;

/// Beyond this, a value pushes its meaning to the right.
const WIDEST: usize = 48;

/// The names of all embedded recipes, each with what it is for.
pub fn recipe_list() -> String {
    let width = widest(RECIPES.iter().map(|recipe| recipe.name));
    let lines = RECIPES
        .iter()
        .map(|recipe| format!("{:width$}  {}", recipe.name, recipe.summary()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every key with its default and its meaning.
///
/// # Errors
/// As [`Recipe::flat`].
pub fn key_list() -> Result<String> {
    let notes = key_notes();
    let lines: Vec<(String, &str)> = Recipe::default()
        .flat()?
        .into_iter()
        .map(|(key, value)| {
            let note = notes.iter().find(|note| note.key == key);
            let meaning = note.map_or("", |note| note.text.as_str());
            (format!("{key} = {value}"), meaning)
        })
        .collect();
    let width = widest(lines.iter().map(|(line, _)| line.as_str())).min(WIDEST);
    let lines = lines
        .iter()
        .map(|(line, meaning)| format!("{line:width$}  # {meaning}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(str::len).max().unwrap_or(0)
}
