//! The draws: uniform, without repeats, never the image itself, a function of the seed alone.

use std::collections::HashSet;

use pirl_bank::{BankError, Drawn, NegativeSampler, PerImageSampler, SharedSampler};
use proptest::prelude::*;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

fn shared(rows: usize, batch: &[u32], n: usize, seed: u64) -> (Vec<u32>, Vec<Option<u32>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    match SharedSampler.draw(rows, batch, n, &mut rng).unwrap() {
        Drawn::Shared { indices, own } => (indices, own),
        other => panic!("{other:?}"),
    }
}

fn per_image(rows: usize, batch: &[u32], n: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    match PerImageSampler.draw(rows, batch, n, &mut rng).unwrap() {
        Drawn::PerImage { indices } => indices,
        other => panic!("{other:?}"),
    }
}

fn all_different(indices: &[u32]) -> bool {
    indices.iter().collect::<HashSet<_>>().len() == indices.len()
}

proptest! {
    #[test]
    fn draws_keep_their_promises(
        rows in 2usize..400, share in 0.0f64..1.0, seed in any::<u64>(),
        batch in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        // From one negative to all but one, which are the hard ends.
        let n = 1 + (share * (rows - 1) as f64) as usize;
        let batch: Vec<u32> = batch.iter().map(|i| i.index(rows) as u32).collect();

        let (indices, own) = shared(rows, &batch, n, seed);
        prop_assert_eq!(indices.len(), n);
        prop_assert!(all_different(&indices) && indices.iter().all(|&i| (i as usize) < rows));
        for (image, own) in batch.iter().zip(own) {
            let column = indices.iter().position(|i| i == image);
            prop_assert_eq!(own, column.map(|column| column as u32));
        }

        let indices = per_image(rows, &batch, n, seed);
        prop_assert_eq!(indices.len(), n * batch.len());
        for (set, image) in indices.chunks(n).zip(&batch) {
            prop_assert!(all_different(set) && !set.contains(image));
            prop_assert!(set.iter().all(|&i| (i as usize) < rows));
        }
    }
}

#[test]
fn every_row_is_drawn_equally_often() {
    // Chi-square over the rows. Drawing without replacement makes the counts less spread than
    // independent draws would, by the factor 1 - n / population, which is divided out.
    let (rows, n, rounds) = (101usize, 20, 20_000u64);
    let image = 37u32;
    let mut drawn = [vec![0f64; rows], vec![0f64; rows]];
    for seed in 0..rounds {
        for index in shared(rows, &[image], n, seed).0 {
            drawn[0][index as usize] += 1.0;
        }
        for index in per_image(rows, &[image], n, seed) {
            drawn[1][index as usize] += 1.0;
        }
    }
    assert_eq!(drawn[1][image as usize], 0.0);
    drawn[1].remove(image as usize);
    for counts in drawn {
        let population = counts.len() as f64;
        let want = rounds as f64 * n as f64 / population;
        let square = counts
            .iter()
            .map(|count| (count - want).powi(2) / want)
            .sum::<f64>();
        let square = square / (1.0 - n as f64 / population);
        // With about 100 degrees of freedom: mean 100, deviation 14; both tails at four of them.
        assert!(
            (45.0..156.0).contains(&square),
            "chi-square {square} of {population} rows"
        );
    }
}

#[test]
fn pairs_of_rows_are_drawn_equally_often() {
    // Rows drawn one by one could be right on their own and wrong together.
    let (rows, n, rounds) = (9usize, 3, 30_000u64);
    let mut pairs = vec![0f64; rows * rows];
    for seed in 0..rounds {
        let mut indices = shared(rows, &[], n, seed).0;
        indices.sort_unstable();
        for (i, a) in indices.iter().enumerate() {
            for b in &indices[i + 1..] {
                pairs[*a as usize * rows + *b as usize] += 1.0;
            }
        }
    }
    // Three of the 36 pairs a round.
    let want = rounds as f64 * 3.0 / 36.0;
    for a in 0..rows {
        for b in a + 1..rows {
            let count = pairs[a * rows + b];
            assert!(
                (count / want - 1.0).abs() < 0.08,
                "rows {a} and {b}: {count}, want {want}"
            );
        }
    }
}

#[test]
fn draws_depend_on_the_seed_and_not_on_the_threads() {
    let batch: Vec<u32> = (0..40).collect();
    let with = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            (
                per_image(500, &batch, 60, seed),
                shared(500, &batch, 60, seed),
            )
        })
    };
    assert_eq!(with(1, 7), with(4, 7));
    let (a, b) = (with(1, 7), with(1, 8));
    assert!(a.0 != b.0 && a.1 != b.1);
    // Images of a batch do not get each other's set.
    assert_ne!(a.0[..60], a.0[60..120]);
}

#[test]
fn one_generator_gives_a_new_draw_each_step() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let first = SharedSampler.draw(1000, &[1], 100, &mut rng).unwrap();
    assert_ne!(
        SharedSampler.draw(1000, &[1], 100, &mut rng).unwrap(),
        first
    );
}

#[test]
fn impossible_draws_are_errors() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for sampler in [&SharedSampler as &dyn NegativeSampler, &PerImageSampler] {
        for (rows, n) in [(10, 10), (10, 11), (1, 1), (0, 1)] {
            let error = sampler.draw(rows, &[], n, &mut rng).unwrap_err();
            let found = error.to_string();
            let wanted = format!("count = {n}: must be at most {}", rows.max(1) - 1);
            assert!(found.starts_with(&wanted), "{found}");
        }
        assert!(sampler.draw(10, &[0, 9], 9, &mut rng).is_ok());
        let error = sampler.draw(10, &[0], 0, &mut rng).unwrap_err();
        assert_eq!(error.to_string(), "count = 0: must be at least 1");
        let error = sampler.draw(10, &[0, 10], 5, &mut rng).unwrap_err();
        assert!(
            matches!(
                error,
                BankError::Index {
                    index: 10,
                    rows: 10
                }
            ),
            "{error}"
        );
    }
    let error = SharedSampler
        .draw(100, &[0], 200, &mut rng)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("count = 200") && error.contains("at most 99"),
        "{error}"
    );
}
