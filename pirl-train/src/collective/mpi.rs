//! Ranks that MPI joins.
//!
//! A thread of its own makes every call of MPI, in the order in which the rank asks for them: what is
//! reduced goes on beside the rank's work, no level of MPI's thread support is asked for, and a rank that
//! does not come is noticed whatever MPI thinks of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::request::{LocalScope, Request};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use mpi::{Count, Threading};

use super::{Collective, Join, Pending, Place, Ranks};
use crate::error::{Result, TrainError};

/// Numbers of a sum that travel together: several are under way at the same time.
const PIECE: usize = 1 << 20;
/// Most bytes of one message: MPI counts them in 32 bits.
const MESSAGE: usize = 1 << 28;
/// How long a rank that has waited too long asks who else has come.
const ROLL_CALL: Duration = Duration::from_secs(2);
/// How long it takes until a rank that waits also listens to such questions.
const LISTEN_AFTER: Duration = Duration::from_secs(1);
const QUESTION: i32 = 1;
const ANSWER: i32 = 2;

/// A process that MPI knows as a rank.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    orders: Mutex<Option<Sender<Order>>>,
    /// Set to end all ranks.
    abort: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What MPI's thread is asked for.
struct Order {
    work: Work,
    answer: Sender<Result<Answer>>,
}

enum Work {
    AllReduce(Vec<f32>),
    ReduceScatter(Vec<f32>, Vec<usize>),
    AllGather(Vec<u8>),
    Broadcast(usize, Vec<u8>),
    Abort,
}

enum Answer {
    Numbers(Vec<f32>),
    Bytes(Vec<Vec<u8>>),
}

impl Mpi {
    pub(super) fn join(place: &Place, options: &Join) -> Result<Ranks> {
        let launch = |reason: String| TrainError::Launch {
            launcher: place.launcher,
            reason,
        };
        let (orders, inbox) = channel();
        let (started, found) = channel();
        let abort = Arc::new(AtomicBool::new(false));
        let (flag, timeout) = (Arc::clone(&abort), options.timeout);
        let thread = thread::Builder::new()
            .name("pirl-mpi".to_owned())
            .spawn(move || serve(&inbox, &started, flag, timeout))
            .map_err(|error| launch(format!("the thread of MPI cannot be started: {error}")))?;
        let found = found.recv();
        let (rank, size) =
            found.map_err(|_| launch("MPI cannot be initialised; see its message".to_owned()))?;
        if (rank, size) != (place.rank, place.size) {
            return Err(launch(format!(
                "it started this process as rank {} of {}, and MPI finds rank {rank} of {size}: the \
                 launcher and the MPI library of this program do not know each other (with Slurm, try \
                 srun --mpi=pmix)",
                place.rank, place.size
            )));
        }
        Ok(Arc::new(Self {
            rank,
            size,
            orders: Mutex::new(Some(orders)),
            abort,
            thread: Some(thread),
        }))
    }

    /// Has work done; what is returned waits for it.
    fn order(&self, work: Work) -> Result<Receiver<Result<Answer>>> {
        let (answer, answers) = channel();
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = orders
            .as_ref()
            .map(|orders| orders.send(Order { work, answer }));
        match sent {
            Some(Ok(())) => Ok(answers),
            _ => Err(ended()),
        }
    }

    fn bytes(&self, work: Work) -> Result<Vec<Vec<u8>>> {
        match self.order(work)?.recv().map_err(|_| ended())?? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Numbers(_) => Err(ended()),
        }
    }
}

fn ended() -> TrainError {
    TrainError::Other("the thread of MPI has ended".into())
}

fn numbers(answers: &Receiver<Result<Answer>>) -> Result<Vec<f32>> {
    match answers.recv().map_err(|_| ended())?? {
        Answer::Numbers(numbers) => Ok(numbers),
        Answer::Bytes(_) => Err(ended()),
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, values: Vec<f32>) -> Result<Pending> {
        let answers = self.order(Work::AllReduce(values))?;
        Ok(Pending::new(move || numbers(&answers)))
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.bytes(Work::AllGather(own))
    }

    fn reduce_scatter(&self, values: Vec<f32>, lengths: &[usize]) -> Result<Vec<f32>> {
        numbers(&self.order(Work::ReduceScatter(values, lengths.to_vec()))?)
    }

    fn broadcast(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.bytes(Work::Broadcast(root, bytes))?.concat())
    }

    fn abort(&self, _: &str) {
        self.abort.store(true, Ordering::SeqCst);
        // It may be waiting for an order rather than for a rank.
        let _ = self.order(Work::Abort);
        // MPI ends this process; should it not, nothing else would.
        thread::sleep(Duration::from_secs(10));
        std::process::exit(1);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        *orders = None; // so that the thread ends, and finalises MPI
        drop(orders);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed
        }
    }
}

/// What MPI's thread does.
fn serve(
    inbox: &Receiver<Order>,
    started: &Sender<(usize, usize)>,
    abort: Arc<AtomicBool>,
    timeout: Duration,
) {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        return;
    };
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    if started.send((rank, size)).is_err() {
        return;
    }
    for Order { work, answer } in inbox {
        let mut wait = Wait {
            world: &world,
            answer: &answer,
            abort: &abort,
            timeout,
            since: Instant::now(),
        };
        let done = match work {
            Work::AllReduce(values) => Answer::Numbers(wait.all_reduce(&values)),
            Work::ReduceScatter(values, lengths) => {
                Answer::Numbers(wait.reduce_scatter(&values, &lengths))
            }
            Work::AllGather(own) => Answer::Bytes(wait.all_gather(&own)),
            Work::Broadcast(root, bytes) => Answer::Bytes(vec![wait.broadcast(root, bytes)]),
            Work::Abort => world.abort(1),
        };
        let _ = answer.send(Ok(done)); // a sum that nobody waits for
    }
}

/// A call that waits for other ranks.
struct Wait<'a> {
    world: &'a SimpleCommunicator,
    answer: &'a Sender<Result<Answer>>,
    abort: &'a AtomicBool,
    timeout: Duration,
    since: Instant,
}

impl Wait<'_> {
    fn all_reduce(&mut self, values: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; values.len()];
        let world = self.world;
        mpi::request::scope(|scope| {
            let pieces = values.chunks(PIECE).zip(sums.chunks_mut(PIECE));
            let requests = pieces.map(|(values, sums)| {
                world.immediate_all_reduce_into(scope, values, sums, SystemOperation::sum())
            });
            self.all(requests.collect());
        });
        sums
    }

    fn reduce_scatter(&mut self, values: &[f32], lengths: &[usize]) -> Vec<f32> {
        // Blocks of one length, as MPI has it without blocking.
        let block = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = vec![0.0; block * lengths.len()];
        let mut rest = values;
        for (block, &length) in padded.chunks_mut(block.max(1)).zip(lengths) {
            let (own, others) = rest.split_at(length.min(rest.len()));
            block[..own.len()].copy_from_slice(own);
            rest = others;
        }
        let mut sums = vec![0.0; block];
        let world = self.world;
        mpi::request::scope(|scope| {
            let request = world.immediate_reduce_scatter_block_into(
                scope,
                &padded[..],
                &mut sums[..],
                SystemOperation::sum(),
            );
            self.all(vec![request]);
        });
        sums.truncate(lengths.get(world.rank() as usize).copied().unwrap_or(0));
        sums
    }

    fn all_gather(&mut self, own: &[u8]) -> Vec<Vec<u8>> {
        let world = self.world;
        let mut lengths = vec![0_u64; world.size() as usize];
        let length = own.len() as u64;
        mpi::request::scope(|scope| {
            let request = world.immediate_all_gather_into(scope, &length, &mut lengths[..]);
            self.all(vec![request]);
        });
        // Bytes of each rank that are on their way at the same time.
        let most = MESSAGE / lengths.len().max(1);
        let mut gathered: Vec<Vec<u8>> = lengths.iter().map(|_| Vec::new()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        for start in (0..longest).step_by(most) {
            let share = |length: usize| length.saturating_sub(start).min(most);
            let counts = lengths
                .iter()
                .map(|&length| share(length as usize) as Count);
            let counts: Vec<Count> = counts.collect();
            let displacements: Vec<Count> = counts
                .iter()
                .scan(0, |place, count| {
                    Some(std::mem::replace(place, *place + count))
                })
                .collect();
            let total: Count = counts.iter().sum();
            let mut bytes = vec![0_u8; total as usize];
            let part = &own[start.min(own.len())..][..share(own.len())];
            {
                let mut parts = mpi::datatype::PartitionMut::new(
                    &mut bytes[..],
                    counts.as_slice(),
                    displacements.as_slice(),
                );
                mpi::request::scope(|scope| {
                    let request = world.immediate_all_gather_varcount_into(scope, part, &mut parts);
                    self.all(vec![request]);
                });
            }
            let mut rest = &bytes[..];
            for (gathered, &count) in gathered.iter_mut().zip(&counts) {
                let (own, others) = rest.split_at(count as usize);
                gathered.extend_from_slice(own);
                rest = others;
            }
        }
        gathered
    }

    fn broadcast(&mut self, root: usize, mut bytes: Vec<u8>) -> Vec<u8> {
        let root = self.world.process_at_rank(root as i32);
        let mut length = [bytes.len() as u64];
        mpi::request::scope(|scope| {
            let request = root.immediate_broadcast_into(scope, &mut length[..]);
            self.all(vec![request]);
        });
        bytes.resize(length[0] as usize, 0);
        for part in bytes.chunks_mut(MESSAGE) {
            mpi::request::scope(|scope| {
                let request = root.immediate_broadcast_into(scope, part);
                self.all(vec![request]);
            });
        }
        bytes
    }

    /// Waits until all of `requests` are done. Does not return if a rank does not come: the error is
    /// given to whoever waits, who then ends all ranks.
    fn all<'b, D: ?Sized>(&mut self, requests: Vec<Request<'b, D, &LocalScope<'b>>>) {
        let mut polls = 0_u32;
        for mut request in requests {
            // One look moves all of them on, and costs system calls: the others wait for their turn.
            while let Err(waiting) = request.test() {
                request = waiting;
                polls += 1;
                self.pause(polls);
            }
        }
    }

    /// Between two looks at what is under way. The processor is left to whoever computes.
    fn pause(&mut self, polls: u32) {
        match polls {
            0..50 => thread::yield_now(),
            50..500 => thread::sleep(Duration::from_micros(20)),
            _ => thread::sleep(Duration::from_micros(200)),
        }
        if polls.is_multiple_of(64) {
            let waited = self.since.elapsed();
            if self.abort.load(Ordering::SeqCst) {
                self.world.abort(1);
            }
            if waited >= LISTEN_AFTER {
                self.answer_questions();
            }
            if waited >= self.timeout {
                self.give_up();
            }
        }
    }

    /// Tells ranks that ask that this one has come. Returns the lowest that asked.
    fn answer_questions(&self) -> Option<usize> {
        let mut lowest = None;
        let anyone = self.world.any_process();
        while let Some(status) = anyone.immediate_probe_with_tag(QUESTION) {
            let asker = self.world.process_at_rank(status.source_rank());
            let _: (u8, _) = asker.receive_with_tag(QUESTION);
            asker.send_with_tag(&1_u8, ANSWER);
            let rank = status.source_rank() as usize;
            lowest = Some(lowest.map_or(rank, |lowest: usize| lowest.min(rank)));
        }
        lowest
    }

    /// Finds out which ranks have not come, tells whoever waits, and ends all ranks when told to.
    fn give_up(&self) -> ! {
        let (own, size) = (self.world.rank() as usize, self.world.size() as usize);
        let mut come = vec![false; size];
        come[own] = true;
        for rank in (0..size).filter(|&rank| rank != own) {
            let rank = self.world.process_at_rank(rank as i32);
            rank.send_with_tag(&1_u8, QUESTION);
        }
        let asked = Instant::now();
        while asked.elapsed() < ROLL_CALL {
            if let Some(rank) = self.answer_questions() {
                come[rank] = true;
            }
            let anyone = self.world.any_process();
            while let Some(status) = anyone.immediate_probe_with_tag(ANSWER) {
                let other = self.world.process_at_rank(status.source_rank());
                let _: (u8, _) = other.receive_with_tag(ANSWER);
                come[status.source_rank() as usize] = true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // One message is enough: that of the lowest rank that has come.
        let lowest = come.iter().position(|&come| come);
        if lowest != Some(own) {
            thread::sleep(3 * ROLL_CALL);
        }
        let missing = come.iter().enumerate().filter(|(_, come)| !**come);
        let _ = self.answer.send(Err(TrainError::RanksMissing {
            ranks: missing.map(|(rank, _)| rank).collect(),
            seconds: self.timeout.as_secs_f64(),
        }));
        let told = Instant::now();
        while !self.abort.load(Ordering::SeqCst) && told.elapsed() < 5 * ROLL_CALL {
            thread::sleep(Duration::from_millis(10));
        }
        self.world.abort(1)
    }
}
