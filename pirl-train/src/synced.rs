//! Batch norm over all parts of a batch that go through the networks at the same time: one on each device, of
//! every rank.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use candle_core::Device;
use pirl_model::Peers;

use crate::collective::Ranks;
use crate::error::{BoxError, Result, TrainError};

/// The devices of a process, which meet in its memory; the first of them meets those of other ranks for all.
///
/// In a round, each device takes a part of the batch through its networks, and all exchange numbers as often
/// as these have batch norms, in the same order. A part that fails ends the round for all.
pub(crate) struct Rounds {
    ranks: Ranks,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What each part has given to the exchange under way; no part between rounds.
    given: Vec<Option<Vec<f64>>>,
    /// The parts that have ended.
    ended: Vec<bool>,
    /// Exchanges so far, and what came of the last.
    exchanges: u64,
    exchanged: Vec<Vec<f64>>,
    /// What went wrong first in this round.
    failed: Option<String>,
}

impl Rounds {
    pub(crate) fn new(ranks: Ranks) -> Arc<Self> {
        Arc::new(Self {
            ranks,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The way of the networks on a device to the others, by its place among the devices.
    pub(crate) fn member(self: &Arc<Self>, place: usize, device: &Device) -> Arc<Member> {
        Arc::new(Member {
            rounds: Arc::clone(self),
            place,
            device: format!("{:?}", device.location()),
        })
    }

    /// Begins a round of so many parts, on the first devices. It ends when what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>, parts: usize) -> Round {
        let mut state = self.lock();
        state.given = vec![None; parts];
        state.ended = vec![false; parts];
        state.failed = None;
        Round(Arc::clone(self))
    }

    /// What all parts gave, by rank and place.
    fn exchange(&self, place: usize, own: Vec<f64>) -> Result<Vec<Vec<f64>>> {
        let mut state = self.lock();
        let before = state.exchanges;
        state.check()?;
        *state.given.get_mut(place).ok_or_else(uneven)? = Some(own);
        self.changed.notify_all();
        if place > 0 {
            while state.exchanges == before {
                state.check()?;
                state.wait_for(0)?;
                state = self.wait(state);
            }
            return Ok(state.exchanged.clone());
        }
        while let Some(missing) = state.given.iter().position(Option::is_none) {
            state.check()?;
            state.wait_for(missing)?;
            state = self.wait(state);
        }
        state.check()?;
        let given: Vec<Vec<f64>> = state.given.iter_mut().filter_map(Option::take).collect();
        drop(state);
        let all = self.over_ranks(given)?;
        let mut state = self.lock();
        state.exchanges += 1;
        state.exchanged.clone_from(&all);
        self.changed.notify_all();
        Ok(all)
    }

    /// What the parts of all ranks gave, of which this one's gave `own`, lists of one length.
    fn over_ranks(&self, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        if self.ranks.size() == 1 {
            return Ok(own);
        }
        let length = own.first().map_or(0, Vec::len).max(1);
        let bytes = own.iter().flatten().flat_map(|value| value.to_le_bytes());
        let all = self.ranks.all_gather(bytes.collect())?.concat();
        let (values, _) = all.as_chunks();
        let values = values.iter().map(|bytes| f64::from_le_bytes(*bytes));
        let values: Vec<f64> = values.collect();
        Ok(values.chunks(length).map(<[f64]>::to_vec).collect())
    }

    fn fail(&self, reason: impl FnOnce() -> String) {
        self.lock().failed.get_or_insert_with(reason);
        self.changed.notify_all();
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    // What is under the lock is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(reason) => Err(TrainError::Other(reason.clone().into())),
            None => Ok(()),
        }
    }

    /// An error if the part that is waited for has ended.
    fn wait_for(&self, place: usize) -> Result<()> {
        match self.ended.get(place) {
            Some(false) => Ok(()),
            _ => Err(uneven()),
        }
    }
}

fn uneven() -> TrainError {
    let why = "with synced batch norm all parts of a batch must go through the networks in the same way, and \
               one has had more batch norms than another";
    TrainError::Other(why.into())
}

/// A round under way.
pub(crate) struct Round(Arc<Rounds>);

impl Drop for Round {
    fn drop(&mut self) {
        // Parts that have not ended are not waited for any more, nor do they wait.
        self.0.fail(|| "the step was given up".to_owned());
        self.0.lock().given.clear();
    }
}

/// The way of the networks on one device to those on the others.
pub(crate) struct Member {
    rounds: Arc<Rounds>,
    place: usize,
    device: String,
}

impl Member {
    /// Does the `work` of this device's part of a round. If it fails, the others do too.
    pub(crate) fn part<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let panic = Panic(self);
        let outcome = work();
        drop(panic);
        match &outcome {
            Ok(_) => {
                let mut state = self.rounds.lock();
                if let Some(ended) = state.ended.get_mut(self.place) {
                    *ended = true;
                }
                drop(state);
                self.rounds.changed.notify_all();
            }
            Err(error) => self.fail(error),
        }
        outcome
    }

    fn fail(&self, reason: &dyn std::fmt::Display) {
        let device = &self.device;
        self.rounds.fail(|| format!("on {device}: {reason}"));
    }
}

/// Fails the round if the thread panics.
struct Panic<'a>(&'a Member);

impl Drop for Panic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(&"its thread panicked");
        }
    }
}

impl Peers for Member {
    fn any(&self) -> bool {
        let parts = self.rounds.lock().given.len();
        parts > 1 || (parts == 1 && self.rounds.ranks.size() > 1)
    }

    fn gather(&self, own: Vec<f64>) -> Result<Vec<Vec<f64>>, BoxError> {
        Ok(self.rounds.exchange(self.place, own)?)
    }
}
