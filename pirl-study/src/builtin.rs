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

#[cfg(test)]
mod tests {
    use pirl_recipes::{Recipe, Setting, pretext};

    use crate::config::{Study, Weights};

    /// Nine patches of 64 pixels, or of 8, and every number of their orders: the settings of a series suit both.
    #[test]
    fn every_series_suits_its_own_recipe_and_the_paper_s() {
        let own = Study::load("paper").unwrap();
        let papers = own.clone().with_recipe("imagenet-resnet50-jigsaw");
        for study in [own, papers] {
            for figure in &study.figures {
                let keyed = figure.x.as_ref().filter(|x| x.key.is_some());
                for series in figure
                    .series
                    .iter()
                    .filter(|it| it.weights == Weights::Trained)
                {
                    let tables = [&study.budget, &study.set, &series.set, &series.budget];
                    let settings: Vec<_> = tables.into_iter().flat_map(Setting::of_table).collect();
                    for place in 0..keyed.map_or(1, |x| x.values.len()) {
                        if keyed.is_some_and(|x| !series.has(&x.names()[place])) {
                            continue;
                        }
                        let axis = keyed.and_then(|x| Some((x.key.as_deref()?, &x.values[place])));
                        let axis = axis.filter(|(_, value)| !value.is_str()); // "most"
                        let axis = axis.map(|(key, value)| Setting::new(key, value.clone()));
                        let settings = [&settings[..], axis.as_slice()].concat();
                        let recipe = Recipe::load(&study.recipe, &settings).unwrap();
                        let named = format!("{} {} {settings:?}", figure.name, series.name);
                        pretext(&recipe).unwrap_or_else(|error| panic!("{named}: {error}"));
                    }
                }
            }
        }
    }
}
