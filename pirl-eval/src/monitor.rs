//! How good a backbone is while it is being trained.

use pirl_data::Pack;
use pirl_model::Backbone;

use crate::error::Result;
use crate::extract::{Extraction, batch_norm_images, extract_features, recompute_batch_norm};
use crate::knn::{Knn, KnnReport};
use crate::probe::{Probe, check_packs};

/// Nearest neighbours on a labelled pair of packs, again and again.
#[derive(Clone, Debug)]
pub struct Monitor {
    train: Pack,
    test: Pack,
    extraction: Extraction,
    batch_norm_images: usize,
    seed: u64,
    knn: Knn,
}

impl Monitor {
    /// Images of `train` vote on those of `test`. Batch-norm statistics are recomputed first on
    /// `batch_norm_images` images of `train`, chosen by `seed`; 0 for 4,096: those of a training are of
    /// patches, too.
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
    ) -> Result<Self> {
        check_packs(&train, &test)?;
        Ok(Self {
            train,
            test,
            extraction,
            batch_norm_images: self::batch_norm_images(batch_norm_images),
            seed,
            knn,
        })
    }

    /// The accuracy at this moment. The backbone is as before afterwards, statistics included, so that a
    /// training goes on as if nobody had looked.
    ///
    /// # Errors
    /// Those of reading the images and of the probe.
    pub fn measure(&self, backbone: &dyn Backbone) -> Result<KnnReport> {
        let before = backbone.state()?;
        let measured = self.measure_now(backbone);
        backbone.load(&before)?;
        measured
    }

    fn measure_now(&self, backbone: &dyn Backbone) -> Result<KnnReport> {
        let (train, images) = (&self.train, self.batch_norm_images);
        recompute_batch_norm(backbone, train, &self.extraction, images, self.seed)?;
        let features = |pack| extract_features(backbone, pack, &self.extraction, &mut |_, _| {});
        let (train, test) = (features(&self.train)?, features(&self.test)?);
        self.knn.evaluate(&train, &test, &mut |_, _| {})
    }
}
