//! Recipes: every setting of a run, from an embedded TOML file or one's own and settings typed over it,
//! checked and resolved into one table that has every key.

mod check;
mod embedded;
mod listing;
mod load;
mod overlay;
mod setting;
mod tables;

pub use embedded::{Embedded, KeyNote, RECIPES, key_notes};
pub use listing::{key_list, recipe_list};
pub use setting::Setting;
pub use tables::{
    BankConfig, BankInit, BankStorage, CheckpointConfig, LoaderTable, LogConfig, LossConfig,
    LossKind, Recipe, Sampling, TrainConfig, TransformConfig,
};
