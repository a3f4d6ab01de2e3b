//! An allocator for programs that train on a CPU.

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// The allocator: `#[global_allocator] static ALLOCATOR: Allocator = allocator();`.
pub type Allocator = MiMalloc;

/// See [`Allocator`].
pub const fn allocator() -> Allocator {
    MiMalloc
}

/// `mi_option_purge_delay` of mimalloc.h, versions 2 and 3; the binding leaves it out.
const PURGE_DELAY: mi_option_t = 15;

/// Keeps freed memory: a step frees hundreds of megabytes that the next one needs again, and every
/// page returned to the system costs a fault and a clearing. Without this a ResNet-50 step takes a
/// seventh longer. To be called first in `main`, before there are other threads.
pub fn keep_freed_memory() {
    // SAFETY: sets one of mimalloc's integers, before other threads exist; -1 means never.
    unsafe { mi_option_set(PURGE_DELAY, -1) }
}
