//! The JSON records of a fetch as columns: an accelerator of `streamer/records`, which stays the definition.
//!
//! It decides only rows that it is sure about: plain good records. Every other row is marked, and the Python path says what
//! it means. So the two can differ only in what a good record means, and tests compare them there, to the bit.
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod layout;
pub mod rows;
pub mod scan;
pub mod time;

#[cfg(feature = "python")]
mod python;
