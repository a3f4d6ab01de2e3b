//! One module a command.

pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod compose;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod pretrain;
pub(crate) mod preview;
pub(crate) mod recipes;
pub(crate) mod report;
pub(crate) mod stats;
pub(crate) mod study;
