//! Whether snapshots of volumes can be kept where they are to be.

use std::{path::Path, time::Duration};

use caddis_snapshot::{Location, Options, SnapshotStore, StoreConfig, StoreKey};

use super::{Check, existing, served, server::Server};
use crate::{failure, installation_key::InstallationKey, instance, settings::Settings};

const NAME: &str = "snapshots";
const TO_TRY: &str = "the server has it, and it was not tried: that takes its --snapshot-store";
/// Below it a directory is told to be nearly full, bytes.
const WANTED_DISK: u64 = 1 << 30;
/// How long a store is tried that does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a small object into the store, reads it and removes it. A directory that is not there yet
/// is not made. Nothing of the kind where the server that runs has a store that is not asked for,
/// or credentials that doctor does not have.
pub async fn check(settings: &Settings, server: Option<&Server>) -> Check {
    let store = settings.snapshots.to_string();
    let is_default = settings.snapshots.is_default(&settings.data_dir);
    let location = match (settings.snapshots.location(), served::snapshot_store(server)) {
        (Ok(_), Some(served)) if is_default && served != store => {
            return Check::ok(NAME, format!("{served}; {TO_TRY}"));
        }
        (Err(_), Some(served)) if served == store => {
            return Check::ok(NAME, format!("{served}; {TO_TRY} and its credentials"));
        }
        (Ok(location), _) => location,
        (Err(error), _) => {
            let text = failure::with_causes(&error);
            return Check::failed(NAME, text, "see caddis serve --help: --snapshot-store");
        }
    };
    let mut text = store;
    let mut is_full = false;
    if let Location::Directory(path) = &location {
        match room(path, &settings.data_dir) {
            Ok((free, place)) => {
                text = format!("{text}: {} MiB free{place}", free >> 20);
                is_full = free < WANTED_DISK;
            }
            Err(error) => {
                let text = format!("{text}: {error}");
                return Check::failed(NAME, text, "choose another directory with --snapshot-store");
            }
        }
        if !path.exists() {
            return of_space(format!("{text}; caddis serve creates it"), is_full);
        }
    }
    let is_directory = matches!(location, Location::Directory(_));
    match try_out(location, &settings.data_dir).await {
        Ok(()) => of_space(text, is_full),
        Err(error) if is_directory => Check::failed(
            NAME,
            format!("{text}: {error}"),
            "mount it, or choose another directory with --snapshot-store",
        ),
        // Servers start and run without it.
        Err(error) => Check::warning(
            NAME,
            format!("{text}: {error}"),
            "snapshots wait until it can be used: see --snapshot-store and those beside it",
        ),
    }
}

fn of_space(text: String, is_full: bool) -> Check {
    match is_full {
        true => Check::warning(NAME, text, "free some space, or choose another place for them"),
        false => Check::ok(NAME, text),
    }
}

async fn try_out(location: Location, data_dir: &Path) -> Result<(), String> {
    let known = InstallationKey::open(&data_dir.join(instance::INSTALLATION_KEY)).ok().flatten();
    // Nothing stays that is encrypted with it.
    let any = || Ok(StoreKey { bytes: rand::random::<[u8; 32]>().into(), id: "doctor".to_owned() });
    let key = known.map_or_else(any, |key| key.of_snapshots());
    let key = key.map_err(|error| failure::with_causes(&error))?;
    let options =
        Options { retries: 1, retry_for: TIMEOUT, timeout: TIMEOUT, ..Options::default() };
    let store = SnapshotStore::open_with(StoreConfig { location, key }, options);
    let store = store.map_err(|error| error.to_string())?;
    match tokio::time::timeout(2 * TIMEOUT, store.check()).await {
        Ok(checked) => checked.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", 2 * TIMEOUT.as_secs())),
    }
}

/// Free bytes of a directory, and what is to be said of where it is.
fn room(path: &Path, data_dir: &Path) -> nix::Result<(u64, &'static str)> {
    let stat = nix::sys::statvfs::statvfs(existing(path))?;
    let of_volumes = nix::sys::statvfs::statvfs(existing(data_dir))?;
    let place = match stat.filesystem_id() == of_volumes.filesystem_id() {
        true => ", on the disk of the volumes: they are no backup of it",
        false => "",
    };
    Ok((stat.blocks_available() * stat.fragment_size(), place))
}
