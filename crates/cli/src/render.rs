//! How things look: tables, JSON, times, sizes, machines.

pub mod diff;
pub mod json;
pub mod log;
pub mod machine;
pub mod paint;
pub mod places;
pub mod size;
pub mod table;
pub mod time;
pub mod words;
