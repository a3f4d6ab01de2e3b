//! The recipes that come with the program.

/// A recipe by name.
pub(crate) struct Embedded {
    pub(crate) name: &'static str,
    /// What it says, TOML.
    pub(crate) text: &'static str,
}

impl Embedded {
    /// The first line of its opening comment.
    pub(crate) fn summary(&self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim()
    }
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        /// All embedded recipes.
        pub(crate) const RECIPES: &[Embedded] = &[$(Embedded {
            name: $name,
            text: include_str!(concat!("../../recipes/", $name, ".toml")),
        }),*];
    };
}

recipes![
    "cifar10",
    "photos",
    "fashion-mnist",
    "fashion-mnist-long",
    "fashion-mnist-npid",
    "fashion-mnist-jigsaw-covariant",
    "fashion-mnist-rotation",
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
pub(crate) struct KeyNote {
    pub(crate) key: String,
    pub(crate) text: String,
}

/// The comments of the paper's recipe, which explains every key: `key = value # note`.
pub(crate) fn key_notes() -> Vec<KeyNote> {
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
