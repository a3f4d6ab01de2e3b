//! The studies that are part of the program.

/// Their names, and the text of each.
pub(crate) const BUILTIN: [(&str, &str); 8] = [
    ("invariance", include_str!("../studies/invariance.toml")),
    ("lambda", include_str!("../studies/lambda.toml")),
    ("layers", include_str!("../studies/layers.toml")),
    ("methods", include_str!("../studies/methods.toml")),
    ("negatives", include_str!("../studies/negatives.toml")),
    ("paper", include_str!("../studies/paper.toml")),
    ("permutations", include_str!("../studies/permutations.toml")),
    ("transforms", include_str!("../studies/transforms.toml")),
];

/// Their names in words.
pub fn names() -> String {
    BUILTIN.map(|(name, _)| name).join(", ")
}
