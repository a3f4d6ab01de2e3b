//! The copies of the networks on further devices, a thread each.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use candle_core::{Device, Tensor};
use pirl_model::GradientSum;

use super::replica::{Outcome, Part, Replica};

/// A replica on a thread of its own: cuDNN's handles stay on theirs.
///
/// What is asked of it is done in order. Outcomes are on its device still, so that it need not come to
/// a halt for them; gradients come back in the host's memory.
pub(crate) struct Worker {
    orders: Option<Sender<Order>>,
    results: Receiver<Result<Answer>>,
    device: Device,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// To take up these parameters, flat, of each module.
    Adopt(Vec<Tensor>),
    /// To differentiate a part, whose loss is multiplied by a scale first.
    Differentiate(Box<Part>, f64),
    /// To hand over the gradients.
    Gradients,
}

enum Answer {
    Done(Box<Outcome>),
    Gradients(Vec<Option<Tensor>>),
}

impl Worker {
    pub(crate) fn start(replica: Replica) -> Result<Self> {
        let (orders, inbox) = channel();
        let (outbox, results) = channel();
        let device = replica.device().clone();
        let work = move || {
            let mut own = Own {
                gradients: GradientSum::new(replica.parameters()),
                replica,
            };
            for order in inbox {
                let answer = own.obey(order).transpose();
                if let Some(answer) = answer
                    && outbox.send(answer).is_err()
                {
                    break; // nobody waits any more
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("replica".to_owned())
            .spawn(work)
            .context("starting the thread of a further device")?;
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

    /// Gives the replica these parameters, in the host's memory, before whatever comes next.
    pub(crate) fn adopt(&self, parameters: Vec<Tensor>) -> Result<()> {
        self.order(Order::Adopt(parameters))
    }

    /// Has a part differentiated; [`Worker::outcome`] waits for what comes of it.
    pub(crate) fn differentiate(&self, part: Part, scale: f64) -> Result<()> {
        self.order(Order::Differentiate(Box::new(part), scale))
    }

    pub(crate) fn outcome(&self) -> Result<Outcome> {
        match self.answer()? {
            Answer::Done(outcome) => Ok(*outcome),
            Answer::Gradients(_) => Err(anyhow!("a replica answered out of turn")),
        }
    }

    /// The gradients of all parts since the last call, for [`pirl_model::Optimizer::merge`].
    pub(crate) fn gradients(&self) -> Result<Vec<Option<Tensor>>> {
        self.order(Order::Gradients)?;
        match self.answer()? {
            Answer::Gradients(sums) => Ok(sums),
            Answer::Done(_) => Err(anyhow!("a replica answered out of turn")),
        }
    }

    fn order(&self, order: Order) -> Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.died()),
        }
    }

    fn answer(&self) -> Result<Answer> {
        match self.results.recv() {
            Ok(answer) => answer.with_context(|| format!("on {:?}", self.device.location())),
            Err(_) => Err(self.died()),
        }
    }

    fn died(&self) -> anyhow::Error {
        anyhow!("the thread of {:?} has ended", self.device.location())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None; // so that the thread ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed
        }
    }
}

/// What a worker's thread owns.
struct Own {
    replica: Replica,
    gradients: GradientSum,
}

impl Own {
    fn obey(&mut self, order: Order) -> Result<Option<Answer>> {
        match order {
            Order::Adopt(parameters) => {
                for (set, flat) in self.replica.parameters().iter().zip(&parameters) {
                    let var = set.var();
                    var.set(&flat.to_device(var.device())?)?;
                }
                Ok(None)
            }
            Order::Differentiate(part, scale) => {
                let gradients = &mut self.gradients;
                let outcome = self.replica.differentiate(*part, &mut |loss| {
                    Ok(gradients.add(&(loss * scale)?.backward()?)?)
                })?;
                Ok(Some(Answer::Done(Box::new(outcome))))
            }
            Order::Gradients => {
                let sums = self.gradients.take().into_iter();
                let sums = sums.map(|sum| sum.map(|sum| sum.to_device(&Device::Cpu)).transpose());
                Ok(Some(Answer::Gradients(sums.collect::<Result<_, _>>()?)))
            }
        }
    }
}
