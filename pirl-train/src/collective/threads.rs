//! Ranks that are threads of one process, and meet in its memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Collective, Pending, Ranks};
use crate::error::{Result, TrainError};

/// A rank that is a thread: [`Threads::run`] starts all of a run, [`Threads::group`] is for programs that have threads
/// of their own.
pub struct Threads {
    rank: usize,
    group: Arc<Group>,
    /// Calls made so far: what is given in call n of one rank meets that of every other.
    calls: AtomicU64,
}

/// Where the ranks meet.
struct Group {
    size: usize,
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What has been given in a call, by the call's number.
    meetings: HashMap<u64, Meeting>,
    /// The first rank that ended, and why.
    failed: Option<(usize, String)>,
}

struct Meeting {
    /// By rank; `None`: not come yet.
    given: Vec<Option<Arc<Gift>>>,
    /// Ranks that have taken what was given.
    left: usize,
}

/// What a rank gives.
enum Gift {
    Bytes(Vec<u8>),
    Numbers(Vec<f32>),
}

impl Threads {
    /// `size` ranks, the first for rank 0; each waits for the others at most `timeout` in any call.
    pub fn group(size: usize, timeout: Duration) -> Vec<Self> {
        let group = Arc::new(Group {
            size,
            timeout,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let rank = |rank| Self {
            rank,
            group: Arc::clone(&group),
            calls: AtomicU64::new(0),
        };
        (0..size).map(rank).collect()
    }

    /// What `work` returns on each of `size` ranks, by rank; each waits for the others as [`Threads::group`] says.
    ///
    /// # Panics
    /// If `work` panics on one of them.
    pub fn run<T: Send>(
        size: usize,
        timeout: Duration,
        work: impl Fn(Ranks) -> T + Sync,
    ) -> Vec<T> {
        let group = Self::group(size, timeout);
        thread::scope(|scope| {
            let work = &work;
            let ranks = group.into_iter().map(|rank| Arc::new(rank) as Ranks);
            let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || work(rank))).collect();
            let found = threads.into_iter().map(|thread| thread.join());
            found
                .map(|found| found.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Gives something in the next call, whose number is returned.
    fn give(&self, gift: Gift) -> Result<u64> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut state = self.group.lock();
        state.check()?;
        let empty = || Meeting {
            given: vec![None; self.group.size],
            left: 0,
        };
        let meeting = state.meetings.entry(call).or_insert_with(empty);
        meeting.given[self.rank] = Some(Arc::new(gift));
        self.group.changed.notify_all();
        Ok(call)
    }

    fn exchange(&self, gift: Gift) -> Result<Vec<Arc<Gift>>> {
        self.group.take(self.give(gift)?)
    }
}

impl Group {
    /// What all ranks have given in a call, once they have.
    fn take(&self, call: u64) -> Result<Vec<Arc<Gift>>> {
        let until = Instant::now() + self.timeout;
        let mut state = self.lock();
        loop {
            state.check()?;
            let Some(meeting) = state.meetings.get_mut(&call) else {
                return Err(TrainError::Other("a rank took the same sum twice".into()));
            };
            let given: Option<Vec<_>> = meeting.given.iter().cloned().collect();
            if let Some(given) = given {
                meeting.left += 1;
                if meeting.left == self.size {
                    state.meetings.remove(&call);
                }
                return Ok(given);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing = meeting.given.iter().enumerate();
                let missing = missing.filter(|(_, gift)| gift.is_none());
                return Err(TrainError::RanksMissing {
                    ranks: missing.map(|(rank, _)| rank).collect(),
                    seconds: self.timeout.as_secs_f64(),
                });
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    // What is under the lock is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some((rank, reason)) => Err(TrainError::RankFailed {
                rank: *rank,
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// The sums over ranks, in their order, so that all have the same bits.
fn sum(given: &[Arc<Gift>]) -> Result<Vec<f32>> {
    let numbers = given.iter().map(|gift| match &**gift {
        Gift::Numbers(numbers) => Ok(numbers),
        Gift::Bytes(_) => Err(other_call()),
    });
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    let (first, others) = numbers.split_first().ok_or_else(other_call)?;
    let mut sums = (*first).clone();
    for other in others {
        if other.len() != sums.len() {
            return Err(other_call());
        }
        for (sum, value) in sums.iter_mut().zip(*other) {
            *sum += value;
        }
    }
    Ok(sums)
}

fn other_call() -> TrainError {
    TrainError::Other("the ranks do not make the same calls in the same order".into())
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn all_reduce(&self, values: Vec<f32>) -> Result<Pending> {
        let call = self.give(Gift::Numbers(values))?;
        let group = Arc::clone(&self.group);
        Ok(Pending::new(move || sum(&group.take(call)?)))
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let given = self.exchange(Gift::Bytes(own))?;
        let bytes = given.iter().map(|gift| match &**gift {
            Gift::Bytes(bytes) => Ok(bytes.clone()),
            Gift::Numbers(_) => Err(other_call()),
        });
        bytes.collect()
    }

    fn reduce_scatter(&self, values: Vec<f32>, lengths: &[usize]) -> Result<Vec<f32>> {
        let start: usize = lengths.iter().take(self.rank).sum();
        let length = lengths.get(self.rank).copied().unwrap_or_default();
        let sums = self.all_reduce(values)?.wait()?;
        let own = sums.get(start..start + length);
        own.map(<[f32]>::to_vec).ok_or_else(other_call)
    }

    fn broadcast(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let own = if self.rank == root { bytes } else { Vec::new() };
        let mut given = self.all_gather(own)?;
        if root < given.len() {
            return Ok(given.swap_remove(root));
        }
        Err(other_call())
    }

    fn abort(&self, reason: &str) {
        let mut state = self.group.lock();
        let first = || (self.rank, reason.to_owned());
        state.failed.get_or_insert_with(first);
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn together<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        Threads::run(size, Duration::from_millis(300), work)
    }

    #[test]
    fn every_rank_gets_the_sums_and_what_the_others_gave() {
        let found = together(3, |rank| {
            let own = rank.rank();
            // Two sums under way at the same time, waited for in the other order.
            let first = rank.all_reduce(vec![own as f32; 4]).unwrap();
            let second = rank.all_reduce(vec![1.0]).unwrap();
            assert_eq!(second.wait().unwrap(), [3.0]);
            assert_eq!(first.wait().unwrap(), [3.0; 4]);
            rank.barrier().unwrap();
            let gathered = rank.all_gather(vec![own as u8; own]).unwrap();
            let said = rank.broadcast(2, vec![own as u8]).unwrap();
            let values = (0..6).map(|place| (place * (own + 1)) as f32).collect();
            let share = rank.reduce_scatter(values, &[1, 2, 3]).unwrap();
            (gathered, said, share)
        });
        let shares: [&[f32]; 3] = [&[0.0], &[6.0, 12.0], &[18.0, 24.0, 30.0]];
        for ((gathered, said, share), expected) in found.iter().zip(shares) {
            assert_eq!(*gathered, [vec![], vec![1], vec![2, 2]]);
            assert_eq!((said.as_slice(), share.as_slice()), (&[2][..], expected));
        }
    }

    #[test]
    fn one_that_fails_or_does_not_come_is_named() {
        let errors = together(3, |rank| match rank.rank() {
            1 => {
                rank.abort("image 7 is damaged");
                String::new()
            }
            _ => rank.barrier().unwrap_err().to_string(),
        });
        for rank in [0, 2] {
            assert!(errors[rank].contains("rank 1") && errors[rank].contains("image 7"));
        }
        let errors = together(3, |rank| match rank.rank() {
            2 => String::new(),
            _ => rank.barrier().unwrap_err().to_string(),
        });
        assert!(errors[0].contains("rank 2 did not come"), "{}", errors[0]);
        assert_eq!(errors[0], errors[1]);
    }
}
