//! Buffers that outlive a step: fresh memory costs a page fault every 4 KiB, which on small
//! networks takes longer than the arithmetic.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers waiting to be used again, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<f32>>>);

impl Pool {
    /// A buffer of `len` entries with unspecified contents.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<f32>| (len..=len + len / 4).contains(&buffer.capacity());
        let best = (0..free.len())
            .filter(|&i| fits(&free[i]))
            .min_by_key(|&i| free[i].capacity());
        let data = match best {
            Some(i) => {
                let mut data = free.remove(i);
                data.resize(len, 0.0);
                data
            }
            None => {
                // What is kept but does not fit makes room, so the pool never adds to the peak.
                let mut dropped = 0;
                while dropped < len && !free.is_empty() {
                    dropped += free.remove(0).capacity();
                }
                vec![0.0; len]
            }
        };
        Buffer {
            data,
            pool: Arc::clone(self),
        }
    }
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    data: Vec<f32>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_serves_the_next_request_of_its_size() {
        let pool = Arc::new(Pool::default());
        let mut first = pool.take(100);
        first[99] = 7.0;
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(90);
        assert_eq!((second.as_ptr(), second.len()), (address, 90));
        let third = pool.take(100);
        assert_ne!(third.as_ptr(), address);
    }

    #[test]
    fn what_does_not_fit_is_released() {
        let pool = Arc::new(Pool::default());
        drop(pool.take(1000));
        let small = pool.take(10);
        assert_eq!(small.len(), 10);
        assert!(pool.0.lock().unwrap().is_empty());
    }
}
