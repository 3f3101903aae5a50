//! What every transport of the bus must hold: one suite, run over each of them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use caddis_bus::InProcessBus;

mod suite;

suite::holds_for!(in_process, async { InProcessBus::new() });
