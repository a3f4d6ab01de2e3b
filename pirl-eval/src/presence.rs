//! Which classes an image shows: any number of them.

use pirl_data::Pack;

use crate::error::{EvalError, Result};
use crate::feature_set::FeatureSet;
use crate::probe::same_classes;

/// Presence of every class in every image: 1 present, 0 absent, -1 only as difficult objects
/// (VISSL's `create_voc_data_files.py`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    classes: usize,
    /// `(images, classes)`
    values: Vec<i8>,
}

impl Presence {
    /// `values`: `(images, classes)`, row by row, each 1, 0 or -1.
    ///
    /// # Errors
    /// [`EvalError::Shape`] if they fill no rows, or for another value.
    pub fn new(classes: usize, values: Vec<i8>) -> Result<Self> {
        let whole = classes > 0 && !values.is_empty() && values.len().is_multiple_of(classes);
        if !whole || values.iter().any(|value| !(-1..=1).contains(value)) {
            return Err(EvalError::Shape {
                what: "presences".to_owned(),
                expected: format!("rows of {classes} values from -1 to 1"),
                found: format!("{} values", values.len()),
            });
        }
        Ok(Self { classes, values })
    }

    /// From a pack's objects, or, where it has none, from the class of each image.
    ///
    /// # Errors
    /// [`EvalError::Unlabelled`] for an image with neither; [`EvalError::Label`]; `set` names the
    /// pack in the error.
    pub fn of_pack(pack: &Pack, set: &'static str) -> Result<Self> {
        let classes = pack.class_names().len();
        let mut values = vec![0; pack.len() * classes];
        for (index, row) in values.chunks_exact_mut(classes.max(1)).enumerate() {
            let unlabelled = || EvalError::Unlabelled { set, index };
            let found: Vec<(u32, bool)> = if pack.has_objects() {
                let objects = pack.objects(index).ok_or_else(unlabelled)?;
                objects.labels.into_iter().zip(objects.difficult).collect()
            } else {
                vec![(pack.label(index).ok_or_else(unlabelled)?, false)]
            };
            for (label, difficult) in found {
                let place = row.get_mut(label as usize).ok_or(EvalError::Label {
                    index,
                    label,
                    classes,
                })?;
                *place = match (difficult, *place) {
                    (false, _) | (true, 1) => 1,
                    (true, _) => -1,
                };
            }
        }
        if values.is_empty() {
            return Err(EvalError::Unlabelled { set, index: 0 });
        }
        Self::new(classes, values)
    }

    /// Of a training and a test pack, which must number the same classes.
    ///
    /// # Errors
    /// As [`Presence::of_pack`]; [`EvalError::Classes`].
    pub fn of_packs(train: &Pack, test: &Pack) -> Result<(Self, Self)> {
        same_classes(train.class_names(), test.class_names())?;
        Ok((
            Self::of_pack(train, "training")?,
            Self::of_pack(test, "test")?,
        ))
    }

    /// Of `class` in every image.
    pub fn of(&self, class: usize) -> impl Iterator<Item = i8> {
        self.values
            .iter()
            .skip(class)
            .step_by(self.classes)
            .copied()
    }

    /// Checks that it is of the images of `features`, and that every class is present in at least `least`
    /// of them.
    pub(crate) fn check(
        &self,
        set: &'static str,
        features: &FeatureSet,
        least: usize,
    ) -> Result<()> {
        let (images, names) = (features.labels().len(), features.class_names());
        if self.classes != names.len() || self.values.len() != images * self.classes {
            return Err(EvalError::Shape {
                what: format!("presences of the {set} set"),
                expected: format!("{images} images of {} classes", names.len()),
                found: format!("{} of {}", self.values.len(), self.classes),
            });
        }
        for (class, name) in names.iter().enumerate() {
            let found = self.of(class).filter(|presence| *presence == 1).count();
            if found < least {
                return Err(EvalError::NoPositives {
                    class: name.clone(),
                    set,
                    found,
                    least,
                });
            }
        }
        Ok(())
    }
}
