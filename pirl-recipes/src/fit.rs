//! A recipe fitted to fewer images than it was made for.

use crate::recipe::Recipe;

/// Lowers what asks for more than `images` images: `data.limit`, `train.batch_size` with `optim.lr` in
/// proportion, `loss.negatives`. Warns of each by [`tracing`].
///
/// To be given to [`Recipe::load_adjusted`], so that what the user typed is never changed.
pub fn fit(recipe: &mut Recipe, images: usize) {
    for Lowered { key, from, to } in lower(recipe, images, images) {
        tracing::warn!("{key} is {to} instead of the recipe's {from}: there are {images} images");
    }
}

/// A setting that was lowered.
pub(crate) struct Lowered {
    pub(crate) key: &'static str,
    from: String,
    to: String,
}

/// As [`fit`], without a word; a batch has at most `largest_batch` images.
pub(crate) fn lower(recipe: &mut Recipe, images: usize, largest_batch: usize) -> Vec<Lowered> {
    let mut all = Vec::new();
    let mut lowered = |key, from: String, to: String| all.push(Lowered { key, from, to });
    if recipe.data.limit > images {
        let limit = std::mem::take(&mut recipe.data.limit);
        lowered("data.limit", limit.to_string(), "0 (all)".to_owned());
    }
    let images = match recipe.data.limit {
        0 => images,
        limit => limit,
    };
    let batch = recipe.train.batch_size;
    if batch > largest_batch.min(images) {
        let (lr, fits) = (recipe.optim.lr, batch_size(images));
        recipe.train.batch_size = fits;
        recipe.optim.lr = lr * fits as f64 / batch as f64;
        lowered("train.batch_size", batch.to_string(), fits.to_string());
        lowered("optim.lr", lr.to_string(), recipe.optim.lr.to_string());
    }
    let (negatives, most) = (recipe.loss.negatives, images.saturating_sub(1).max(1));
    if recipe.loss.kind.is_contrastive() && negatives > most {
        recipe.loss.negatives = most;
        lowered("loss.negatives", negatives.to_string(), most.to_string());
    }
    all
}

/// The largest power of two that makes at least two batches of so many images.
fn batch_size(images: usize) -> usize {
    1 << (images / 2).max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::recipe::Setting;

    #[test]
    fn a_batch_is_at_most_half_of_the_images() {
        let found = [1, 3, 4, 60, 500, 1024, 50_000].map(batch_size);
        assert_eq!(found, [1, 1, 2, 16, 128, 512, 16_384]);
    }

    #[test]
    fn a_recipe_is_fitted_to_fewer_images_and_what_was_typed_is_not() {
        let load = |images, settings: &[&str]| {
            let typed: Vec<Setting> = settings.iter().map(|s| s.parse().unwrap()).collect();
            let adjust = |recipe: &mut Recipe| -> Result<()> {
                fit(recipe, images);
                Ok(())
            };
            Recipe::load_adjusted("fashion-mnist-resnet18", adjust, &typed).unwrap()
        };
        let same = load(60_000, &[]);
        assert_eq!(same, Recipe::load("fashion-mnist-resnet18", &[]).unwrap());
        let few = load(100, &[]);
        let found = (few.data.limit, few.train.batch_size, few.loss.negatives);
        assert_eq!(found, (0, 32, 99));
        assert!((few.optim.lr / same.optim.lr - 32.0 / 128.0).abs() < 1e-9);
        assert_eq!(load(100, &["loss.negatives=4096"]).loss.negatives, 4096);
    }
}
