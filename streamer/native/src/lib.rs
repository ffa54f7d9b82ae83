//! The records of a fetch, and their JSON or Avro, as columns: accelerators of the Python code, which stays the definition.
//!
//! It decides only rows that it is sure about: plain good records. Every other row is marked, and the Python path says what
//! it means. So the two can differ only in what a good record means, and tests compare them there, to the bit.
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod answers;
pub mod avro;
pub mod layout;
pub mod pack;
pub mod records;
pub mod rows;
pub mod scan;
pub mod time;

#[cfg(feature = "python")]
mod answers_python;
#[cfg(feature = "python")]
mod pack_python;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod records_python;
