//! How many samples and objects of each class a pack has.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Pack;

/// By label; classes without any are absent.
pub type PerClass = BTreeMap<u32, usize>;

/// What [`Pack::counts`] counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Samples of each class; `None` when they have no labels.
    pub images_per_class: Option<PerClass>,
    /// `None` when no objects are annotated.
    pub objects: Option<ObjectCounts>,
    /// Bytes of all shards together.
    pub bytes: u64,
}

/// Annotated objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectCounts {
    /// Of all classes.
    pub total: usize,
    /// Of each class.
    pub per_class: PerClass,
    /// Those of `per_class` that are hard to recognise.
    pub difficult: PerClass,
}

impl Counts {
    pub(super) fn of(pack: &Pack, bytes: u64) -> Self {
        let labels = pack.labels();
        Self {
            images_per_class: labels.map(|labels| count(labels.into_iter())),
            objects: pack.has_objects().then(|| ObjectCounts::of(pack)),
            bytes,
        }
    }
}

impl ObjectCounts {
    fn of(pack: &Pack) -> Self {
        let objects = || (0..pack.len()).filter_map(|index| pack.objects(index));
        let labels = |only_difficult: bool| {
            objects().flat_map(move |objects| {
                let wanted = objects.iter().filter(|object| object.2 || !only_difficult);
                wanted.map(|object| object.1).collect::<Vec<_>>()
            })
        };
        Self {
            total: objects().map(|objects| objects.len()).sum(),
            per_class: count(labels(false)),
            difficult: count(labels(true)),
        }
    }
}

fn count(labels: impl Iterator<Item = u32>) -> PerClass {
    let mut counts = PerClass::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    counts
}
