//! The API as clients see it: the real router, catalog and bus over a scripted worker.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod apps;
mod authorization;
mod connections;
mod create;
mod crowds;
mod egress;
mod holds;
mod hosts;
mod idempotency;
mod images_and_logs;
mod input;
mod leases;
mod machines;
mod mounts;
mod openapi;
mod operation;
mod operations;
mod policies;
mod reference;
mod snapshots;
mod support;
mod terminal;
mod view;
mod volumes;
mod wait;
mod watch;
mod wireguard;
