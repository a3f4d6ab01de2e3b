//! The recipes that come with this crate.

/// A recipe that comes with this crate.
pub struct Embedded {
    /// What [`Recipe::load`](crate::Recipe::load) takes.
    pub name: &'static str,
    /// Its file, TOML: what differs from its `base`.
    pub text: &'static str,
}

impl Embedded {
    /// What it is for, in a line: the first of its opening comment.
    pub fn summary(&self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim()
    }
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        /// All recipes that come with this crate.
        pub const RECIPES: &[Embedded] = &[$(Embedded {
            name: $name,
            text: include_str!(concat!("../../recipes/", $name, ".toml")),
        }),*];
    };
}

recipes![
    "cifar10",
    "cifar10-long",
    "cifar10-rotation",
    "cifar10-jigsaw-rotation",
    "cifar10-npid",
    "cifar10-jigsaw-covariant",
    "photos",
    "fashion-mnist",
    "fashion-mnist-long",
    "fashion-mnist-npid",
    "fashion-mnist-jigsaw-covariant",
    "fashion-mnist-rotation",
    "fashion-mnist-resnet18",
    "fashion-mnist-scenes",
    "imagenet-resnet50-jigsaw",
    "imagenet-resnet50-mlp",
    "rotation",
    "npid",
    "jigsaw-covariant",
    "rotation-covariant",
    "voc0712",
    "voc0712-moco",
    "supervised-resnet50",
    "supervised-fashion-mnist",
];

/// What a key means.
pub struct KeyNote {
    /// Its dotted name: `train.epochs`.
    pub key: String,
    /// Its meaning, unit and choices.
    pub text: String,
}

/// What every key means: the comments of the paper's recipe, which has them all, in its order.
pub fn key_notes() -> Vec<KeyNote> {
    let text = RECIPES
        .iter()
        .find(|recipe| recipe.name == "imagenet-resnet50-jigsaw")
        .map_or("", |recipe| recipe.text);
    let mut table = String::new();
    let mut notes = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            table = format!("{name}.");
        } else if let Some((key, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#'))
        {
            notes.push(KeyNote {
                key: format!("{table}{key}"),
                text: rest
                    .split_once('#')
                    .map_or("", |(_, note)| note.trim())
                    .to_owned(),
            });
        }
    }
    notes
}
