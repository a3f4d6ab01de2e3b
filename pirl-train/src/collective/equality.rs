//! Whether all ranks have the same numbers: they compute them on their own, from the same sums.

use xxhash_rust::xxh3::Xxh3;

use super::Collective;
use crate::error::{Result, TrainError};

/// A hash of numbers.
#[derive(Default)]
pub(crate) struct Digest(Xxh3);

impl Digest {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// An error that names the ranks whose digest is not that of most; all ranks return the same.
pub(crate) fn ensure_equal(
    ranks: &dyn Collective,
    step: u64,
    what: &'static str,
    digest: &Digest,
) -> Result<()> {
    let all = ranks.all_gather(digest.0.digest().to_le_bytes().to_vec())?;
    let votes = |digest: &Vec<u8>| all.iter().filter(|other| *other == digest).count();
    // Of equally many, those that agree with the lowest rank.
    let most = all.iter().rev().max_by_key(|digest| votes(digest));
    let differ = all.iter().enumerate();
    let differ = differ.filter(|(_, digest)| Some(*digest) != most);
    let differ: Vec<usize> = differ.map(|(rank, _)| rank).collect();
    match differ.is_empty() {
        true => Ok(()),
        false => Err(TrainError::RanksDiffer {
            ranks: differ,
            step,
            what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::collective::Threads;

    #[test]
    fn the_rank_that_differs_is_named() {
        let found = Threads::run(3, Duration::from_secs(10), |rank| {
            let mut digest = Digest::default();
            digest.add(b"the same");
            ensure_equal(rank.as_ref(), 1, "weights", &digest).unwrap();
            digest.add(&[u8::from(rank.rank() == 0)]);
            let error = ensure_equal(rank.as_ref(), 2, "weights", &digest);
            error.unwrap_err().to_string()
        });
        assert!(found[0].contains("weights of rank 0 differ") && found[0].contains("step 2"));
        assert!(found.iter().all(|text| *text == found[0]));
    }
}
