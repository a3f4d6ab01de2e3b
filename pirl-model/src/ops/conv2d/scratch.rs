//! Working memory that a thread keeps: packing into fresh memory would cost more in page faults than
//! in copies.

use std::cell::Cell;

thread_local! {
    static KEPT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `len` numbers of unspecified value.
pub(super) fn with<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    // Taken out while in use, so that a nested call gets memory of its own.
    let mut scratch = KEPT.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = work(&mut scratch[..len]);
    KEPT.set(scratch);
    result
}
