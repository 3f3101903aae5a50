//! The host's forwarding switches: turned on at start, put back to what they were when the last
//! installation's host is cleaned. What they were is a matter of the host, not of an installation,
//! so it is noted beside the claims.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{NetworkError, state};

const SWITCHES: [&str; 2] =
    ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// What the names of the files begin with in which it is noted, one for each network namespace that
/// is some host's.
pub(crate) const FILE_PREFIX: &str = "forwarding-";

/// Turns forwarding on; whether it was off. What was off is noted in `file` before.
pub(crate) fn enable(file: &Path) -> Result<bool, NetworkError> {
    let mut before = state::read(file);
    let mut changes = Vec::new();
    for switch in SWITCHES {
        let value =
            fs::read_to_string(switch).map_err(NetworkError::io(format!("read {switch}")))?;
        if value.trim() != "1" {
            before.entry(switch.to_owned()).or_insert_with(|| value.trim().to_owned());
            changes.push(switch);
        }
    }
    if changes.is_empty() {
        return Ok(false);
    }
    state::write(file, &before)?;
    for switch in changes {
        fs::write(switch, "1").map_err(NetworkError::io(format!("turn on {switch}")))?;
    }
    Ok(true)
}

/// Whether an earlier release has noted something in a file of the data directory.
pub(crate) fn is_noted(file: &Path) -> bool {
    state::read(file).keys().any(|key| SWITCHES.contains(&key.as_str()))
}

/// Whether all are on.
pub(crate) fn is_on() -> bool {
    SWITCHES.iter().all(|switch| fs::read_to_string(switch).is_ok_and(|value| value.trim() == "1"))
}

/// Takes over what an earlier release noted in a file of the data directory.
pub(crate) fn take_over(from: &Path, file: &Path) -> Result<(), NetworkError> {
    let (earlier, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
        state::read(from).into_iter().partition(|(key, _)| SWITCHES.contains(&key.as_str()));
    if earlier.is_empty() {
        return Ok(());
    }
    let mut before = state::read(file);
    before.extend(earlier);
    state::write(file, &before)?;
    state::write(from, &kept)
}

/// Removes all such files: of hosts whose network went without being cleaned, where no installation
/// is left.
pub(crate) fn forget(run_directory: &Path) -> Result<(), NetworkError> {
    let failed = || NetworkError::io(format!("clean up {}", run_directory.display()));
    for entry in fs::read_dir(run_directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_name().as_encoded_bytes().starts_with(FILE_PREFIX.as_bytes()) {
            fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}

/// Puts back what [`enable`] has changed.
pub(crate) fn restore(file: &Path) -> Result<(), NetworkError> {
    for (switch, value) in state::read(file) {
        if SWITCHES.contains(&switch.as_str()) {
            fs::write(&switch, value).map_err(NetworkError::io(format!("restore {switch}")))?;
        }
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(NetworkError::io(format!("remove {}", file.display()))(error))
        }
        _ => Ok(()),
    }
}
