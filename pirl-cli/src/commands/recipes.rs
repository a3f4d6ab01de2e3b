//! `pirl recipes`

use anyhow::{Context, Result};
use pirl_recipes::{RECIPES, Recipe, key_list, key_notes, recipe_list};
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
    if !json {
        return print(&recipe_list());
    }
    let recipes = RECIPES.iter();
    let names: Map<String, Value> = recipes
        .map(|recipe| (recipe.name.to_owned(), recipe.summary().into()))
        .collect();
    print_json(&json!({ "recipes": names }))
}

fn keys(json: bool) -> Result<()> {
    if !json {
        return print(&key_list()?);
    }
    let notes = key_notes();
    let keys = Recipe::default().flat()?.into_iter().map(|(key, value)| {
        let default = serde_json::to_value(value).context("writing a default as JSON")?;
        let note = notes.iter().find(|note| note.key == key);
        let meaning = note.map_or("", |note| note.text.as_str());
        Ok((key, json!({ "default": default, "meaning": meaning })))
    });
    print_json(&json!({ "keys": keys.collect::<Result<Map<_, _>>>()? }))
}
