//! The parts of a batch that go through copies of a network at the same time.

use std::error::Error;

use crate::error::{ModelError, Result};

/// The way of a part of a batch to the others, which go through copies of the same network at the same time:
/// on other devices, in other processes. Batch norm that is synced takes its statistics over all of them
/// ([`Trainable::sync_batch_norm`](crate::Trainable::sync_batch_norm)).
///
/// All parts make the same calls in the same order, from the thread that their network is called on.
pub trait Peers: Send + Sync {
    /// Whether there are other parts at this time. Where there are none, nothing is gathered.
    fn any(&self) -> bool;

    /// What every part gave, this one's `own` among them, as many numbers of each: the same lists, in the same
    /// order, for all parts.
    ///
    /// # Errors
    /// If another part has failed, or does not come.
    fn gather(&self, own: Vec<f64>) -> Result<Vec<Vec<f64>>, Box<dyn Error + Send + Sync>>;
}

/// [`Peers::gather`], of as many numbers from each part.
///
/// # Errors
/// [`ModelError::Peers`].
pub(crate) fn gather(peers: &dyn Peers, own: Vec<f64>) -> Result<Vec<Vec<f64>>> {
    let expected = own.len();
    let all = peers.gather(own).map_err(ModelError::Peers)?;
    match all.iter().find(|part| part.len() != expected) {
        None => Ok(all),
        Some(part) => Err(ModelError::Peers(
            format!(
                "a part of the batch gave {} numbers of a batch norm, another {expected}: their networks are \
                 not the same",
                part.len()
            )
            .into(),
        )),
    }
}

/// The sums over all parts of what each gave, added in the order of the parts.
///
/// # Errors
/// [`ModelError::Peers`].
pub(crate) fn sum(peers: &dyn Peers, own: Vec<f64>) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; own.len()];
    for part in gather(peers, own)? {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += value;
        }
    }
    Ok(sums)
}
