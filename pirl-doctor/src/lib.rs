//! Does a device compute what it should, and how fast?
//!
//! [`cases`] are the ops that training and evaluations consist of, at odd sizes too, the heads, and
//! whole networks. [`check_all`] runs each on a device and compares outputs and gradients with
//! those of a plain reference on the CPU.
//!
//! ```
//! use candle_core::Device;
//! use pirl_doctor::{Case, Measure, check_all};
//! use pirl_model::Ops;
//!
//! let double = Case::new("doubling", 1e-6, Measure::Largest, |ops, device| {
//!     let x = candle_core::Tensor::new(&[1f32, 2.0, 3.0], device)?;
//!     let doubled = match ops {
//!         Ops::Fast => (&x + &x)?,
//!         Ops::Reference => (x * 2.0)?,
//!     };
//!     Ok(vec![("output", doubled.to_vec1()?)])
//! });
//! let checks = check_all(&[double], &Device::Cpu);
//! assert!(checks[0].passed);
//! ```
//!
//! [`Speed::measure`] times training steps and the loader of a [`Workload`], such as a
//! [recipe's](RecipeWorkload), and says which of them limits training. A [`Report`] puts all of it together.

mod cases;
mod error;
mod machine;
mod parity;
mod recipe;
mod report;
mod speed;

pub use cases::cases;
pub use error::DoctorError;
pub use machine::{Machine, Versions};
pub use parity::{Case, Check, Measure, Numbers, check_all};
pub use recipe::RecipeWorkload;
pub use report::Report;
pub use speed::{
    Limit, LoaderSpeed, Speed, StepSpeed, TimedStep, Workload, noise_batch, timed_step,
};
