//! The Rust examples of every README, for `cargo test --doc` alone.

/// The workspace's.
#[doc = include_str!("../../README.md")]
struct Workspace;

/// That of pirl-core.
#[doc = include_str!("../../pirl-core/README.md")]
struct Core;

/// That of pirl-data.
#[doc = include_str!("../../pirl-data/README.md")]
struct Data;

/// That of pirl-model.
#[doc = include_str!("../../pirl-model/README.md")]
struct Model;

/// That of pirl-loss.
#[doc = include_str!("../../pirl-loss/README.md")]
struct Loss;

/// That of pirl-bank.
#[doc = include_str!("../../pirl-bank/README.md")]
struct Bank;

/// That of pirl-train.
#[doc = include_str!("../../pirl-train/README.md")]
struct Train;

/// That of pirl-eval.
#[doc = include_str!("../../pirl-eval/README.md")]
struct Eval;

/// That of pirl-recipes.
#[doc = include_str!("../../pirl-recipes/README.md")]
struct Recipes;

/// That of pirl-scenes.
#[doc = include_str!("../../pirl-scenes/README.md")]
struct Scenes;

/// That of pirl-report.
#[doc = include_str!("../../pirl-report/README.md")]
struct Report;

/// That of pirl-study.
#[doc = include_str!("../../pirl-study/README.md")]
struct Study;

/// That of pirl-doctor.
#[doc = include_str!("../../pirl-doctor/README.md")]
struct Doctor;
