//! `pirl recipes`

use anyhow::{Context, Result};
use pirl_recipes::{RECIPES, Recipe, key_notes};
use serde_json::{Map, Value, json};

use crate::args::RecipesArgs;
use crate::output::{print, print_json};

pub(crate) fn run(args: &RecipesArgs) -> Result<()> {
    match &args.name {
        Some(name) => {
            let recipe = Recipe::load(name, &[])?;
            if args.json {
                return print_json(&recipe);
            }
            let summary = RECIPES.iter().find(|recipe| recipe.name == *name);
            let summary =
                summary.map_or(String::new(), |recipe| format!("# {}\n", recipe.summary()));
            print(&format!("{summary}{}", recipe.to_toml()?))
        }
        None if args.keys => keys(args.json),
        None => list(args.json),
    }
}

fn list(json: bool) -> Result<()> {
    if json {
        let names: Map<String, Value> = RECIPES
            .iter()
            .map(|recipe| (recipe.name.to_owned(), recipe.summary().into()))
            .collect();
        return print_json(&json!({ "recipes": names }));
    }
    let width = widest(RECIPES.iter().map(|recipe| recipe.name));
    let lines: Vec<String> = RECIPES
        .iter()
        .map(|recipe| format!("{:width$}  {}", recipe.name, recipe.summary()))
        .collect();
    print(&lines.join("\n"))
}

fn keys(json: bool) -> Result<()> {
    let notes = key_notes();
    let note = |key: &str| {
        let found = notes.iter().find(|note| note.key == key);
        found.map_or("", |note| note.text.as_str())
    };
    let flat = Recipe::default().flat()?;
    if json {
        let keys = flat
            .iter()
            .map(|(key, value)| {
                let default = serde_json::to_value(value).context("writing a default as JSON")?;
                Ok((
                    key.clone(),
                    json!({ "default": default, "meaning": note(key) }),
                ))
            })
            .collect::<Result<Map<_, _>>>()?;
        return print_json(&json!({ "keys": keys }));
    }
    let lines: Vec<(String, &str)> = flat
        .iter()
        .map(|(key, value)| (format!("{key} = {value}"), note(key)))
        .collect();
    let width = widest(lines.iter().map(|(line, _)| line.as_str())).min(48);
    let lines: Vec<String> = lines
        .iter()
        .map(|(line, note)| format!("{line:width$}  # {note}"))
        .collect();
    print(&lines.join("\n"))
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(str::len).max().unwrap_or(0)
}
