//! The host's forwarding switches: turned on at start, put back to what they were when the last installation's host is
//! cleaned. What they were is a matter of the host, not of an installation, so it is noted beside the claims.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{NetworkError, network::read_state};

const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Turns forwarding on; whether it was off. What was off is noted in `state` before.
pub(crate) fn enable(state: &Path) -> Result<bool, NetworkError> {
    let mut before = read_state(state);
    let mut changes = Vec::new();
    for switch in SWITCHES {
        let value = fs::read_to_string(switch).map_err(NetworkError::io(format!("read {switch}")))?;
        if value.trim() != "1" {
            before.entry(switch.to_owned()).or_insert_with(|| value.trim().to_owned());
            changes.push(switch);
        }
    }
    if changes.is_empty() {
        return Ok(false);
    }
    let text = serde_json::to_string(&before).unwrap_or_default();
    fs::write(state, text).map_err(NetworkError::io(format!("write {}", state.display())))?;
    for switch in changes {
        fs::write(switch, "1").map_err(NetworkError::io(format!("turn on {switch}")))?;
    }
    Ok(true)
}

/// Whether all are on.
pub(crate) fn is_on() -> bool {
    SWITCHES.iter().all(|switch| fs::read_to_string(switch).is_ok_and(|value| value.trim() == "1"))
}

/// Takes over what an earlier release noted in a file of the data directory.
pub(crate) fn take_over(from: &Path, state: &Path) -> Result<(), NetworkError> {
    let (earlier, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
        read_state(from).into_iter().partition(|(key, _)| SWITCHES.contains(&key.as_str()));
    if earlier.is_empty() {
        return Ok(());
    }
    let mut before = read_state(state);
    before.extend(earlier);
    for (file, notes) in [(state, before), (from, kept)] {
        let text = serde_json::to_string(&notes).unwrap_or_default();
        fs::write(file, text).map_err(NetworkError::io(format!("write {}", file.display())))?;
    }
    Ok(())
}

/// Puts back what [`enable`] has changed.
pub(crate) fn restore(state: &Path) -> Result<(), NetworkError> {
    for (switch, value) in read_state(state) {
        if SWITCHES.contains(&switch.as_str()) {
            fs::write(&switch, value).map_err(NetworkError::io(format!("put back {switch}")))?;
        }
    }
    match fs::remove_file(state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(NetworkError::io(format!("remove {}", state.display()))(error))
        }
        _ => Ok(()),
    }
}
