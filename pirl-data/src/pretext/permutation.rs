//! Fixed sets of permutations that differ in many places, for the covariant jigsaw.

use pirl_core::{SettingError, check};
use rand::Rng;

use crate::DataError;
use crate::random::shuffle;

/// VISSL's largest list (`MODEL_ZOO.md` of fair_self_supervision_benchmark).
const MOST: usize = 10_000;

/// Blocks drawn for each that is taken.
const CANDIDATES: usize = 8;

/// `count` different permutations of `0..cells` with large Hamming distances; none for `count` 0.
///
/// VISSL adds, greedily, the permutation with the largest mean distance to those it has
/// (`max_avg` of `generate_jigsaw_permutations.py`), which is one that repeats the fewest entries
/// of their columns. Here they come in blocks of `cells`, each a Latin square: a random
/// permutation and its cyclic shifts of entries. Within a block no two agree anywhere, and every
/// block repeats each column's entries equally often, so each choice has the largest mean distance
/// there is. Of eight blocks drawn, the one with the largest least distance (`min`) to what is
/// there is taken.
///
/// # Errors
/// [`DataError::Setting`] when there are fewer than `count` permutations, or `count` is above
/// 10,000.
pub fn permutations(
    cells: usize,
    count: usize,
    rng: &mut dyn Rng,
) -> Result<Vec<Vec<u8>>, DataError> {
    check_permutations(cells, count)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let top = (cells - 1) as u8;
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(count + cells);
    while chosen.len() < count {
        let mut best = (0, Vec::new());
        for _ in 0..CANDIDATES {
            let mut first: Vec<u8> = (0..=top).collect();
            shuffle(rng, &mut first);
            let least = least_distance(&first, &chosen, best.0);
            if least > best.0 {
                best = (least, first);
            }
        }
        // Nothing far enough means that all eight were there already.
        let (_, first) = best;
        chosen.extend((0..first.len()).map(|shift| {
            let mut order = first.clone();
            order.rotate_left(shift);
            order
        }));
    }
    chosen.truncate(count);
    Ok(chosen)
}

/// An error unless there are `count` permutations of so many cells, and a set of them can be made; 0
/// stands for all and makes none.
pub(crate) fn check_permutations(cells: usize, count: usize) -> Result<(), SettingError> {
    let few = count <= MOST;
    let expected = format!("must be at most {MOST}, or 0 for all orders");
    check("permutations", count, few, &expected)?;
    if count == 0 {
        return Ok(());
    }
    let fits = (1..=256).contains(&cells);
    check("cells", cells, fits, "must lie between 1 and 256")?;
    let all = (1..=cells).try_fold(1_usize, |product, n| product.checked_mul(n));
    let all = all.unwrap_or(usize::MAX);
    let expected = format!("must be at most {all}, the orders of {cells} cells");
    check("permutations", count, count <= all, &expected)
}

/// The least Hamming distance of `order` to `chosen`, or anything not above `floor` once that is
/// certain; `order.len()` when nothing is chosen.
///
/// Whole blocks are closed under rotation, and rotating both leaves a distance as it is, so the
/// distances of one member of a block to `chosen` are those of every member.
fn least_distance(order: &[u8], chosen: &[Vec<u8>], floor: usize) -> usize {
    let mut least = order.len();
    for other in chosen {
        let distance = order.iter().zip(other).filter(|(a, b)| a != b).count();
        least = least.min(distance);
        if least <= floor {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Use, stream};
    use std::collections::HashSet;

    fn draw(cells: usize, count: usize, seed: u64) -> Vec<Vec<u8>> {
        permutations(cells, count, &mut stream(seed, Use::Permutations, 0, 0)).unwrap()
    }

    fn distance(a: &[u8], b: &[u8]) -> usize {
        a.iter().zip(b).filter(|(a, b)| a != b).count()
    }

    #[test]
    fn all_differ_and_are_permutations() {
        for (cells, count) in [(1, 1), (4, 24), (9, 100), (9, 10_000), (16, 500)] {
            let set = draw(cells, count, 1);
            assert_eq!(set.len(), count);
            assert_eq!(
                set.iter().collect::<HashSet<_>>().len(),
                count,
                "{cells} {count}"
            );
            for order in &set {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert!(sorted.iter().copied().map(usize::from).eq(0..cells));
            }
        }
    }

    #[test]
    fn the_mean_distance_is_the_largest_possible() {
        // 99 = 11 * 9: every column holds every entry 11 times, so a pair agrees in a column with
        // probability (11 - 1) / (99 - 1), and no set of 99 can do with less.
        let set = draw(9, 99, 2);
        let mut sum = 0;
        let mut least = 9;
        for (i, a) in set.iter().enumerate() {
            for b in &set[..i] {
                sum += distance(a, b);
                least = least.min(distance(a, b));
            }
        }
        let mean = sum as f64 / (99.0 * 98.0 / 2.0);
        assert!((mean - 9.0 * (1.0 - 10.0 / 98.0)).abs() < 1e-9, "{mean}");
        // 100 random permutations nearly always hold a pair at distance 4 or less.
        assert!(least >= 5, "{least}");
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(draw(9, 50, 3), draw(9, 50, 3));
        assert_ne!(draw(9, 50, 3), draw(9, 50, 4));
    }

    #[test]
    fn too_many_is_an_error() {
        let mut rng = stream(0, Use::Permutations, 0, 0);
        let error = permutations(4, 25, &mut rng).unwrap_err().to_string();
        assert_eq!(
            error,
            "permutations = 25: must be at most 24, the orders of 4 cells"
        );
        assert!(permutations(9, 10_001, &mut rng).is_err());
    }
}
