//! Which images have labels.

use pirl_core::random;
use rand::seq::SliceRandom;

use crate::error::EvalError;
use crate::presence::Presence;
use crate::probe::Labels;

/// Purposes of the streams that images are drawn by; 1 and 2 are those of other probes.
const PRESENT: u64 = 3;
const ABSENT: u64 = 4;
/// What there are too few images of.
const POOL: &str = "training (but for those held out)";

/// What images show.
pub(super) enum Targets<'a> {
    /// A class each.
    One(Labels),
    /// Any number of classes: of the training and the test images.
    Several(&'a Presence, &'a Presence),
}

/// The images that draws take from, by class.
pub(super) struct Pool {
    /// Those that show it.
    present: Vec<Vec<u32>>,
    /// Those that do not, where images may show several classes.
    absent: Option<Vec<Vec<u32>>>,
    seed: u64,
}

/// The labelled images of one draw.
pub(super) enum Draw {
    /// As many of each class.
    Shared(Vec<u32>),
    /// Those of each class: that show it, and that do not.
    PerClass(Vec<Vec<u32>>),
}

impl Draw {
    /// The images that the classifier of `class` learns from.
    pub(super) fn of(&self, class: usize) -> &[u32] {
        match self {
            Self::Shared(rows) => rows,
            Self::PerClass(rows) => &rows[class],
        }
    }
}

impl Pool {
    /// `rows` of the training images.
    pub(super) fn new(targets: &Targets<'_>, classes: usize, rows: Vec<u32>, seed: u64) -> Self {
        let mut present = vec![Vec::new(); classes];
        let absent = match targets {
            Targets::One(labels) => {
                for row in rows {
                    present[labels.train[row as usize] as usize].push(row);
                }
                None
            }
            Targets::Several(presence, _) => {
                let mut absent = vec![Vec::new(); classes];
                for class in 0..classes {
                    let values: Vec<i8> = presence.of(class).collect();
                    for row in &rows {
                        // An image with only difficult objects of a class is neither.
                        match values[*row as usize] {
                            1 => present[class].push(*row),
                            0 => absent[class].push(*row),
                            _ => {}
                        }
                    }
                }
                Some(absent)
            }
        };
        Self {
            present,
            absent,
            seed,
        }
    }

    /// Why there can be no draw of `k` labels of each class.
    pub(super) fn lacks(&self, names: &[String], k: usize) -> Option<String> {
        let others = k.saturating_mul(names.len().saturating_sub(1));
        let absent = self.absent.iter().flatten();
        let reason = |rows: &[u32], name: &str, shows: &str, least: usize| {
            let found = rows.len();
            let reason = format!("{found} images that can be drawn {shows} {name:?}, not {least}");
            (found < least).then_some(reason)
        };
        let mut present = self.present.iter().zip(names);
        let mut absent = absent.zip(names);
        let few = present.find_map(|(rows, name)| reason(rows, name, "show", k));
        few.or_else(|| absent.find_map(|(rows, name)| reason(rows, name, "do not show", others)))
    }

    /// The error for `k` labels of each class, which [`Pool::lacks`].
    pub(super) fn too_few(&self, names: &[String], k: usize) -> EvalError {
        let classes = self.present.iter().zip(names);
        let few = classes.min_by_key(|(rows, _)| rows.len());
        let few = few.map(|(rows, name)| (name.clone(), rows.len()));
        let (class, found) = few.unwrap_or_default();
        EvalError::NoPositives {
            class,
            set: POOL,
            found,
            least: k,
        }
    }

    /// The images of a draw, of which there must be enough.
    pub(super) fn draw(&self, k: usize, draw: usize) -> Draw {
        let take = |rows: &[u32], purpose: u64, class: usize, count: usize| -> Vec<u32> {
            let mut rows = rows.to_vec();
            let mut rng = random::stream(self.seed, purpose, draw as u64, class as u64);
            rows.shuffle(&mut rng);
            rows.truncate(count);
            rows
        };
        let classes = self.present.iter().enumerate();
        let present = classes.map(|(class, rows)| take(rows, PRESENT, class, k));
        match &self.absent {
            None => {
                let mut rows: Vec<u32> = present.flatten().collect();
                rows.sort_unstable();
                Draw::Shared(rows)
            }
            Some(absent) => {
                let others = k * absent.len().saturating_sub(1);
                let both = present.zip(absent).enumerate();
                let both = both.map(|(class, (mut rows, absent))| {
                    rows.extend(take(absent, ABSENT, class, others));
                    rows.sort_unstable();
                    rows
                });
                Draw::PerClass(both.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        Labels {
            train: (0..60).map(|row| u32::from(row % 3 == 0)).collect(),
            test: vec![0],
            classes: 2,
        }
    }

    #[test]
    fn draws_have_as_many_of_each_class_and_grow_by_more_labels() {
        let labels = labels();
        let of = labels.train.clone();
        let pool: Vec<u32> = (6..60).collect();
        let pool = Pool::new(&Targets::One(labels), 2, pool, 7);
        let draw = |k, draw| pool.draw(k, draw).of(0).to_vec();
        let four = draw(4, 0);
        assert_eq!(four.len(), 8);
        assert!(four.iter().all(|row| *row >= 6));
        let ones = four.iter().filter(|row| of[**row as usize] == 1).count();
        assert_eq!(ones, 4);
        assert!(draw(2, 0).iter().all(|row| four.contains(row)));
        assert_eq!(draw(4, 0), four);
        assert_ne!(draw(4, 1), four);
        let names = ["many", "few"].map(str::to_owned);
        assert_eq!(pool.lacks(&names, 18), None);
        let reason = pool.lacks(&names, 19).unwrap();
        assert_eq!(reason, "18 images that can be drawn show \"few\", not 19");
        let error = pool.too_few(&names, 19).to_string();
        assert!(error.contains("\"few\"") && error.contains("18"), "{error}");
    }

    #[test]
    fn each_class_has_a_draw_of_its_own_where_images_show_several() {
        // Class 0 is shown by even images, class 1 by the first 20; image 1 shows class 1 only as
        // something difficult.
        let values = (0..50).flat_map(|row| {
            let second = if row == 1 { -1 } else { i8::from(row < 20) };
            [i8::from(row % 2 == 0), second, 0]
        });
        let presence = Presence::new(3, values.collect()).unwrap();
        let targets = Targets::Several(&presence, &presence);
        let pool = Pool::new(&targets, 3, (0..50).collect(), 7);
        let draw = pool.draw(9, 0);
        let first: Vec<i8> = presence.of(0).collect();
        let shows = draw.of(0).iter().filter(|row| first[**row as usize] == 1);
        assert_eq!(shows.count(), 9);
        assert_eq!(draw.of(0).len(), 27);
        assert_ne!(draw.of(0), draw.of(1));
        assert!(!draw.of(1).contains(&1));
        let names = ["even", "low", "none"].map(str::to_owned);
        let reason = pool.lacks(&names, 1).unwrap();
        assert_eq!(reason, "0 images that can be drawn show \"none\", not 1");
    }
}
