//! `/v1/apps/{app}/machines` and below.

pub(crate) mod actions;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod leases;
pub(crate) mod list;
pub(crate) mod memory;
pub(crate) mod metadata;
mod mounts;
pub(crate) mod operation;
mod reached;
mod starting;
pub(crate) mod terminal;
pub(crate) mod update;
pub(crate) mod usage;
pub(crate) mod wait;
pub(crate) mod watch;
