//! Working memory that a thread keeps: packing into fresh memory would cost more in page faults than
//! in copies.

use std::cell::RefCell;

use crate::ops::element::Plain;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// One for each level of nesting.
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `len` numbers of unspecified value.
pub(super) fn with<N: Plain, T>(len: usize, work: impl FnOnce(&mut [N]) -> T) -> T {
    // Taken out while in use, so that a nested call gets memory of its own.
    let mut scratch = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = (len * size_of::<N>()).div_ceil(size_of::<Line>());
    if scratch.len() < lines {
        scratch.resize(lines, Line([0; 64]));
    }
    // SAFETY: the lines hold at least `len` numbers, are aligned as any `Plain` is, initialised, and
    // borrowed by nobody else; any bits are an `N`.
    let numbers = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), len) };
    let result = work(numbers);
    KEPT.with_borrow_mut(|kept| kept.push(scratch));
    result
}
