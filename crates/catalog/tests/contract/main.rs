//! What the catalog promises over any store. Each test runs over each store: a new one is added to
//! `over_each_store!` and has to pass all of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod apps;
mod egress;
mod interruptions;
mod machines;
mod peers;
mod policies;
mod pushes;
mod races;
mod requests;
mod rows;
mod support;
mod tokens;
mod volumes;
