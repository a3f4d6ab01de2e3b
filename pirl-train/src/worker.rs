//! The copies of the networks on further devices, a thread each.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use pirl_data::Batch;
use pirl_model::{GradientSum, ParamSet};

use crate::error::{Result, TrainError};
use crate::networks::Networks;
use crate::objective::{Objective, PartOutcome};
use crate::part::{forward_part, parameters};

/// Networks on a thread of their own: cuDNN's handles stay on theirs.
///
/// What is asked of it is done in order. The numbers of outcomes are on its device still, so that it
/// need not come to a halt for them; gradients come back in the host's memory.
pub(crate) struct Worker<O: Objective> {
    orders: Option<Sender<Order<O>>>,
    results: Receiver<Result<Answer<O>>>,
    device: Device,
    thread: Option<JoinHandle<()>>,
}

enum Order<O: Objective> {
    /// To take over these values, of each parameter set.
    SetParameters(Vec<Tensor>),
    /// To differentiate a part, whose loss is multiplied by a scale first.
    Differentiate(Box<(Batch, O::Target)>, f64),
    /// To hand over the gradients.
    Gradients,
}

enum Answer<O: Objective> {
    Outcome(Box<PartOutcome<O::Outcome>>),
    Gradients(Vec<Option<Tensor>>),
}

impl<O: Objective> Worker<O> {
    pub(crate) fn start(networks: Networks<O::Heads>) -> Result<Self> {
        let (orders, inbox) = channel();
        let (outbox, results) = channel();
        let device = networks.device().clone();
        let parameters = parameters::<O>(&networks);
        let mut state = WorkerState::<O> {
            gradients: GradientSum::new(parameters.clone()),
            parameters,
            networks,
        };
        let work = move || {
            for order in inbox {
                let answer = state.follow(order).transpose();
                if let Some(answer) = answer
                    && outbox.send(answer).is_err()
                {
                    break; // nobody waits any more
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("pirl-worker".to_owned())
            .spawn(work)
            .map_err(|error| TrainError::Thread {
                device: format!("{:?}", device.location()),
                what: format!("cannot be started: {error}"),
            })?;
        Ok(Self {
            orders: Some(orders),
            results,
            device,
            thread: Some(thread),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Gives the networks these parameters, in the host's memory, before whatever comes next.
    pub(crate) fn set_parameters(&self, parameters: Vec<Tensor>) -> Result<()> {
        self.order(Order::SetParameters(parameters))
    }

    /// Has a part differentiated; [`Worker::outcome`] waits for what comes of it.
    pub(crate) fn differentiate(&self, part: Batch, target: O::Target, scale: f64) -> Result<()> {
        self.order(Order::Differentiate(Box::new((part, target)), scale))
    }

    pub(crate) fn outcome(&self) -> Result<PartOutcome<O::Outcome>> {
        match self.answer()? {
            Answer::Outcome(outcome) => Ok(*outcome),
            Answer::Gradients(_) => Err(self.out_of_order()),
        }
    }

    /// The gradients of all parts since the last call, for [`pirl_model::Optimizer::merge`].
    pub(crate) fn gradients(&self) -> Result<Vec<Option<Tensor>>> {
        self.order(Order::Gradients)?;
        match self.answer()? {
            Answer::Gradients(sums) => Ok(sums),
            Answer::Outcome(_) => Err(self.out_of_order()),
        }
    }

    /// Forgets the gradients of all parts since the last call, and answers that nobody asked for.
    pub(crate) fn discard(&self) {
        if self.order(Order::Gradients).is_ok() {
            // The thread answers until it ends, whatever went wrong before.
            while !matches!(self.results.recv(), Ok(Ok(Answer::Gradients(_))) | Err(_)) {}
        }
    }

    fn order(&self, order: Order<O>) -> Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.thread_error("has ended")),
        }
    }

    fn answer(&self) -> Result<Answer<O>> {
        match self.results.recv() {
            Ok(answer) => answer.map_err(|source| TrainError::OnDevice {
                device: format!("{:?}", self.device.location()),
                source: Box::new(source),
            }),
            Err(_) => Err(self.thread_error("has ended")),
        }
    }

    fn out_of_order(&self) -> TrainError {
        self.thread_error("answered what it was not asked")
    }

    fn thread_error(&self, what: &str) -> TrainError {
        TrainError::Thread {
            device: format!("{:?}", self.device.location()),
            what: what.to_owned(),
        }
    }
}

impl<O: Objective> Drop for Worker<O> {
    fn drop(&mut self) {
        self.orders = None; // so that the thread ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed
        }
    }
}

/// What a worker's thread owns.
struct WorkerState<O: Objective> {
    networks: Networks<O::Heads>,
    parameters: Vec<ParamSet>,
    gradients: GradientSum,
}

impl<O: Objective> WorkerState<O> {
    fn follow(&mut self, order: Order<O>) -> Result<Option<Answer<O>>> {
        match order {
            Order::SetParameters(values) => {
                for (set, value) in self.parameters.iter().zip(&values) {
                    let var = set.var();
                    var.set(&value.to_device(var.device())?)?;
                }
                Ok(None)
            }
            Order::Differentiate(part, scale) => {
                let (part, target) = *part;
                let gradients = &mut self.gradients;
                let mut backward = |loss: &Tensor| -> Result<()> {
                    gradients.backward(&(loss * scale)?)?;
                    Ok(())
                };
                let outcome = forward_part::<O>(&mut self.networks, &part, target, &mut backward)?;
                Ok(Some(Answer::Outcome(Box::new(outcome))))
            }
            Order::Gradients => {
                let sums = self.gradients.take().into_iter();
                let sums = sums.map(|sum| sum.map(|sum| sum.to_device(&Device::Cpu)).transpose());
                let sums = sums.collect::<candle_core::Result<_>>()?;
                Ok(Some(Answer::Gradients(sums)))
            }
        }
    }
}
