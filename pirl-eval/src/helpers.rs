//! Ranks that read features for rank 0.
//!
//! Rank 0 does an evaluation as a process alone would. Whenever it reads the features of a pack, the other
//! ranks read some of its batches; in between they wait, and rank 0 lets them know that it is still there,
//! however long it takes over a classifier.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pirl_data::Pack;
use pirl_model::Backbone;
use pirl_train::{Collective, Ranks, TrainError, share_state};

use crate::cache;
use crate::error::{EvalError, Result};
use crate::extract::{Extraction, read_in_turn};

/// From one sign of rank 0 to the next while the others wait; much less than any time-out.
const SIGN: Duration = Duration::from_secs(1);

/// What rank 0 says: nothing is to be done yet.
const WAIT: u8 = 0;
/// The features named by what follows are to be read.
const READ: u8 = 1;
/// No more are.
const END: u8 = 2;

/// The ranks that read features for this one, by [`Extraction::over`]; none by default.
#[derive(Clone, Default)]
pub struct Helpers(Option<Arc<Leader>>);

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let helpers = self.0.as_ref();
        let count = helpers.map_or(0, |leader| leader.line.ranks.size() - 1);
        f.debug_tuple("Helpers").field(&count).finish()
    }
}

/// Rank 0, until the last clone is dropped: the others go on then.
struct Leader {
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
}

/// The way to the others. Who holds the lock may use it.
struct Line {
    ranks: Ranks,
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Line {
    // What is under the lock is whole at any time.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, what: Vec<u8>) -> Result<(), TrainError> {
        self.ranks.broadcast(0, what).map(drop)
    }

    /// Says that rank 0 is there, until it has ended or another rank has.
    fn give_signs(&self) {
        let mut ended = self.lock();
        while !*ended && self.say(vec![WAIT]).is_ok() {
            let waited = self.changed.wait_timeout(ended, SIGN);
            (ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let mut ended = self.line.lock();
        *ended = true;
        let _ = self.line.say(vec![END]); // a rank that has ended has said why
        drop(ended);
        self.line.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed
        }
    }
}

impl Helpers {
    /// Those of `ranks`, for rank 0.
    pub(crate) fn of(ranks: &Ranks) -> Result<Self> {
        let line = Arc::new(Line {
            ranks: Arc::clone(ranks),
            ended: Mutex::new(false),
            changed: Condvar::new(),
        });
        let signs = Arc::clone(&line);
        let thread = thread::Builder::new().name("pirl-signs".to_owned());
        let thread = thread.spawn(move || signs.give_signs());
        let thread = thread.map_err(|error| TrainError::Thread {
            device: "the signs to other ranks".to_owned(),
            what: format!("cannot be started: {error}"),
        })?;
        Ok(Self(Some(Arc::new(Leader {
            line,
            thread: Some(thread),
        }))))
    }

    /// Has the others read the features of `pack`, and does `read` with them; alone without any.
    pub(crate) fn read<T>(
        &self,
        backbone: &dyn Backbone,
        pack: &Pack,
        extraction: &Extraction,
        read: impl FnOnce(&dyn Collective) -> Result<T>,
    ) -> Result<T> {
        let Some(leader) = &self.0 else {
            return read(&pirl_train::Alone);
        };
        let line = &leader.line;
        let _only = line.lock();
        let mut order = vec![READ];
        order.extend(name(pack, extraction).into_bytes());
        line.say(order)?;
        share_state(line.ranks.as_ref(), backbone)?;
        read(line.ranks.as_ref())
    }
}

/// Says which features are read.
fn name(pack: &Pack, extraction: &Extraction) -> String {
    let key = cache::key("", pack, extraction);
    format!("{key}, {} at a time", extraction.batch_size)
}

/// Reads for rank 0 until it has ended: features of any of `packs`, by `extraction`, with the weights that
/// it has then.
pub(crate) fn help(
    ranks: &dyn Collective,
    backbone: &dyn Backbone,
    packs: &[&Pack],
    extraction: &Extraction,
) -> Result<()> {
    loop {
        let order = ranks.broadcast(0, Vec::new())?;
        match order.split_first() {
            Some((&WAIT, _)) => {}
            Some((&READ, wanted)) => {
                let mut packs = packs.iter();
                let pack = packs.find(|pack| name(pack, extraction).as_bytes() == wanted);
                let pack = pack.ok_or(EvalError::OtherImages { rank: ranks.rank() })?;
                share_state(ranks, backbone)?;
                read_in_turn(ranks, backbone, pack, extraction, &mut |_, _| Ok(()))?;
            }
            _ => return Ok(()),
        }
    }
}
