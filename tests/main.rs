//! End to end: the built binary, a real registry, real images, real VMs. `make test` runs it; it
//! needs root.
//!
//! Each test has a host of its own (see `caddis-testkit`), so that they run in any order and side
//! by side.
#![forbid(unsafe_code)]

mod api;
mod awake;
mod checks;
mod clock;
mod command_line;
mod driver;
mod egress;
mod firewall;
mod flycast;
mod full_disk;
mod guest;
mod guide;
mod images;
mod init_systems;
mod isolation;
mod kernel_features;
mod leftovers;
mod lifecycle;
mod logs;
mod mounts;
mod names;
mod neighbours;
mod network;
mod policies;
mod postgres;
mod power_cuts;
mod programs;
mod qmp;
mod restart;
mod services;
mod shell;
mod silence;
mod snapshots;
mod stand;
mod streams;
mod suspend;
mod templates;
mod terminal;
mod traffic;
mod volumes;
mod wireguard;
