//! What end-to-end tests stand on: a [`Host`] of their own, a real [`Server`] on it, a
//! [`Registry`], and images made on the spot from Debian's packages.
//!
//! ```text
//!   test's own thread, network and mount namespace        thread of the outside
//!  ┌──────────────────────────────────────────────┐      ┌─────────────────────────┐
//!  │ Server ─ VMs      Registry     test's client │─veth─│ HTTP, UDP echo, DNS     │
//!  └──────────────────────────────────────────────┘      └─────────────────────────┘
//! ```
//! All of that needs root. What needs neither root nor VMs: a [`Terminal`] for a program, and with
//! the feature `fake` a server over a host that pretends, and a [`cluster`] of several. Everything
//! ends when its value is dropped, also when the test panics.
#![forbid(unsafe_code)]

mod api;
#[cfg(feature = "fake")]
pub mod cluster;
mod command;
mod computer;
mod dns;
#[cfg(feature = "fake")]
pub mod fake;
pub mod guide;
mod host;
pub mod images;
mod machine;
mod outside;
pub mod process;
mod registry;
mod server;
mod terminal;

pub use api::{Api, Reply};
pub use command::{Output, run};
pub use computer::Computer;
pub use host::Host;
pub use machine::{Exec, Machine};
pub use outside::{Datagram, Outside};
pub use registry::{PASSWORD, Registry, RegistryOptions, USER};
pub use server::{Options, Server, accelerator, kernel};
pub use terminal::Terminal;

use std::{path::PathBuf, time::Duration};

/// How long tests wait for an event before they give up: generous, since the machine may be busy
/// with other tests.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The directory of cargo's build products, above the profile's: `target`.
pub fn target_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(directory);
    }
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), |root| root.join("target"))
}
