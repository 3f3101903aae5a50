//! Snapshots in a store: what is taken is what is read, and nothing else ever is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod basics;
mod damage;
mod faults;
mod incremental;
mod random;
mod s3;
mod support;
mod sweep;
