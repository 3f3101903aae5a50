//! The gateway and the worker together, over a fake VMM and a bus that delays, drops and repeats
//! messages.
//!
//! `CADDIS_SEED` sets the seed of what clients and bus choose, `CADDIS_SOAK=1` takes the long form.
#![forbid(unsafe_code)]

mod client;
mod cycles;
#[allow(dead_code, reason = "shared with the tests of the engine")]
mod guards;
mod history;
mod process;
mod registers;
mod rounds;
mod site;

/// Whether the long form is asked for.
fn soaks() -> bool {
    std::env::var_os("CADDIS_SOAK").is_some()
}

/// Tests of what the process takes of the host run one after the other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
