//! The thread that computes, among those of rayon.

use rayon::ThreadPoolBuilder;

/// Makes the calling thread one of rayon's global pool, and returns whether it is: the pool must not have been
/// used before.
///
/// A thread outside the pool sleeps while a pass through a network works in it, and is woken after each op: small
/// networks train a seventh faster from within the pool, a fifth with one thread (benches/RESULTS.md). For programs
/// whose one thread has all the work that the pool shares; work of another thread is done by the rest of the pool,
/// and waits for ever if that is nobody.
///
/// ```
/// assert!(pirl_core::join_pool());
/// assert_eq!(rayon::current_thread_index(), Some(0));
/// ```
pub fn join_pool() -> bool {
    let pool = ThreadPoolBuilder::new().use_current_thread();
    pool.build_global().is_ok()
}
