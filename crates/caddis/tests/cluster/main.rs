//! Several hosts: gateways and workers in one process, over a network that can be cut and hosts
//! that can die.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod copies;
mod hosts;
mod logs;
mod messages;
mod support;
