//! The network of machines on this host.

use std::path::Path;

use caddis_network::{Network, NetworkError};

use super::{Check, served, server::Server};
use crate::{instance, settings::Settings};

/// What an installation that is there has on its host.
pub(super) async fn check(settings: &Settings, server: Option<&Server>) -> Check {
    let name = "network";
    let data_dir = &settings.data_dir;
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let run_directory = Path::new(caddis_network::RUN_DIRECTORY);
    let pools = &served::egress_addresses(settings, server);
    match Network::inspect(run_directory, &data_dir, pools).await {
        Ok(None) => Check::ok(name, "not set up yet; caddis serve sets it up"),
        Ok(Some(missing)) if missing.is_empty() => Check::ok(name, "set up"),
        Ok(Some(missing)) => Check::failed(
            name,
            format!(
                "another program removed part of it ({}): machines can't reach other networks",
                missing.join(", ")
            ),
            "start caddis serve, which restores it",
        ),
        Err(error) => Check::failed(name, error.to_string(), "sudo caddis doctor"),
    }
}

/// Whether the host has the addresses of machines elsewhere.
pub(super) async fn pool(settings: &Settings) -> Check {
    let name = "addresses of machines";
    let data_dir = &settings.data_dir;
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let run_directory = Path::new(caddis_network::RUN_DIRECTORY);
    let state_file = data_dir.join(instance::NETWORK_STATE);
    let given = settings.ipv4_pool;
    match Network::find_pool(run_directory, &data_dir, &state_file, given).await {
        Ok(pool) => Check::ok(name, pool.to_string()),
        Err(error @ NetworkError::PoolInUse { .. }) => Check::failed(
            name,
            error.to_string(),
            "give the other network another range, or machines with --ipv4-pool",
        ),
        Err(error) => Check::failed(name, error.to_string(), "sudo caddis doctor"),
    }
}
