//! Work on the batches or images of a test set that ranks share out: rank r does every one of number r, r +
//! size, and so on.

use pirl_train::Collective;

use crate::error::{EvalError, Result};

/// What came of each of `count` numbers, in their order, on every rank; `own` has what came of this rank's.
pub(crate) fn gather(
    ranks: &dyn Collective,
    count: usize,
    own: Vec<Vec<u32>>,
) -> Result<Vec<Vec<u32>>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let words = own.into_iter().flat_map(|found| {
        let length = found.len() as u32;
        std::iter::once(length).chain(found)
    });
    let all = ranks.all_gather(words.flat_map(u32::to_le_bytes).collect())?;
    let mut all: Vec<_> = all.iter().map(|bytes| Words::of(bytes)).collect();
    let found = (0..count).map(|number| {
        let words = all.get_mut(number % ranks.size());
        let found = words.and_then(|words| {
            let length = words.next()?;
            (0..length).map(|_| words.next()).collect()
        });
        found.ok_or_else(unreadable)
    });
    found.collect()
}

pub(crate) fn unreadable() -> EvalError {
    EvalError::Shape {
        what: "what another rank found".to_owned(),
        expected: "a result for each of its images".to_owned(),
        found: "fewer".to_owned(),
    }
}

/// Numbers of 32 bits one after the other.
pub(crate) struct Words<'a>(std::slice::Iter<'a, [u8; 4]>);

impl<'a> Words<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes.as_chunks().0.iter())
    }
}

impl Iterator for Words<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|bytes| u32::from_le_bytes(*bytes))
    }
}
