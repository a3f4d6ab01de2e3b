//! How good a backbone is while it is being trained.

use pirl_data::Pack;
use pirl_model::Backbone;
use pirl_train::Ranks;

use crate::error::Result;
use crate::extract::{Extraction, batch_norm_images, extract_features, recompute_batch_norm};
use crate::knn::{Knn, KnnReport};
use crate::probe::{Probe, check_packs};

/// Nearest neighbours on a labelled pair of packs, again and again.
#[derive(Clone)]
pub struct Monitor {
    train: Pack,
    test: Pack,
    extraction: Extraction,
    batch_norm_images: usize,
    seed: u64,
    knn: Knn,
    ranks: Ranks,
}

impl Monitor {
    /// Images of `train` vote on those of `test`. Batch-norm statistics are recomputed first on
    /// `batch_norm_images` images of `train`, chosen by `seed`; 0 for 4,096: those of a training are of
    /// patches, too. Features are read by all of `ranks`.
    ///
    /// # Errors
    /// As [`check_packs`].
    pub fn new(
        train: Pack,
        test: Pack,
        extraction: Extraction,
        batch_norm_images: usize,
        seed: u64,
        knn: Knn,
        ranks: &Ranks,
    ) -> Result<Self> {
        check_packs(&train, &test)?;
        Ok(Self {
            train,
            test,
            extraction,
            batch_norm_images: self::batch_norm_images(batch_norm_images),
            seed,
            knn,
            ranks: Ranks::clone(ranks),
        })
    }

    /// The accuracy at this moment; `None` on the ranks that have read for the first. The backbone is as before
    /// afterwards, statistics included, so that a training goes on as if nobody had looked.
    ///
    /// # Errors
    /// Those of reading the images and of the probe.
    pub fn measure(&self, backbone: &dyn Backbone) -> Result<Option<KnnReport>> {
        let before = backbone.state()?;
        let measured = self.measure_now(backbone);
        backbone.load(&before)?;
        measured
    }

    fn measure_now(&self, backbone: &dyn Backbone) -> Result<Option<KnnReport>> {
        let (train, test) = (&self.train, &self.test);
        let extraction = self.extraction.clone();
        let Some(extraction) = extraction.over(&self.ranks, backbone, &[train, test])? else {
            return Ok(None);
        };
        let images = self.batch_norm_images;
        recompute_batch_norm(backbone, train, &extraction, images, self.seed)?;
        let features = |pack| extract_features(backbone, pack, &extraction, &mut |_, _| {});
        let (train, test) = (features(train)?, features(test)?);
        self.knn.evaluate(&train, &test, &mut |_, _| {}).map(Some)
    }
}
