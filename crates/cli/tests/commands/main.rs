//! Every command: what it prints and ends with, to the letter, against a real server over a fake
//! host.
//!
//! `cargo insta test --accept -p caddis-cli` writes anew what has changed; read the difference.

mod addresses;
mod apps;
mod changes;
mod checks;
mod choice;
mod context;
mod images;
mod lifecycle;
mod neighbours;
mod outcomes;
mod policies;
mod refusals;
mod stand;
mod traffic;
mod usage;
mod volumes;
mod wireguard;
