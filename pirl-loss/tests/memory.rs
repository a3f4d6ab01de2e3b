//! The fused loss must not need memory for a batch x negatives matrix, let alone for a gather.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{Case, evaluate, loss};

/// Counts the bytes in use and their maximum.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(
            IN_USE.fetch_add(layout.size(), Relaxed) + layout.size(),
            Relaxed,
        );
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_batch_of_1024_with_32000_negatives_needs_less_than_64_mib() {
    let case = Case::shared(1024, 32_000, 128, vec![None; 1024]);
    for threads in [2, 64] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let before = IN_USE.load(Relaxed);
        PEAK.store(before, Relaxed);
        pool.install(|| evaluate(loss("paper", 0.07).as_ref(), &case).unwrap());
        let extra = (PEAK.load(Relaxed) - before) >> 20;
        assert!(extra < 64, "{extra} MiB with {threads} threads");
    }
}
