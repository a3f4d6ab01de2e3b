//! What tests and benches share: inputs that PyTorch makes too, CUDA kernels on a CPU, examples.
//!
//! [`formula`] is a hash of a seed and an index, so that a golden file need not store its inputs:
//! `benches/formula.py` computes the same numbers in NumPy. The benches themselves are under
//! `benches/benches`, one file for each crate.
//!
//! [`Kernels`] compiles a `.cu` file as C and runs its threads in turn, so that a machine without a
//! GPU tests what a GPU would run.
//!
//! ```
//! assert_eq!(benches::fill(3, 4)[2], benches::formula(3, 2));
//! assert!(benches::fill(7, 1000).iter().all(|x| (-1.0..1.0).contains(x)));
//! ```
//!
//! [`peak_of`] tells how much memory a piece of work takes; [`or_skip`] says why a test has nothing to test.
//!
//! [`run_example`] runs an example of the crate under test. The examples in the READMEs of the workspace
//! and of every crate are doc tests of this one, which depends on all of them.

mod cuda;
mod example;
mod memory;
#[cfg(doctest)]
mod readmes;
mod skip;

pub use cuda::{Buffer, Dim3, Kernels, Stored};
pub use example::run_example;
pub use memory::{Counting, peak_of};
pub use skip::or_skip;

/// Entry `i` of the pseudo-random sequence `seed`: uniform in `[-1, 1)`, exact in `f32`.
pub fn formula(seed: u32, i: u32) -> f32 {
    let mut x = i
        .wrapping_mul(0x9E37_79B9)
        .wrapping_add(seed.wrapping_mul(0x85EB_CA6B));
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^= x >> 16;
    (x >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}

/// The first `n` entries of the sequence `seed`.
pub fn fill(seed: u32, n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| formula(seed, i)).collect()
}
