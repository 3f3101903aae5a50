//! The host's forwarding switches: turned on at start, put back to what they were when the host is cleaned.

use std::{collections::BTreeMap, fs, path::Path};

use crate::NetworkError;

const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Turns forwarding on. What was off is noted in `state` before.
pub(crate) fn enable(state: &Path) -> Result<(), NetworkError> {
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
        return Ok(());
    }
    let text = serde_json::to_string(&before).unwrap_or_default();
    fs::write(state, text).map_err(NetworkError::io(format!("write {}", state.display())))?;
    for switch in changes {
        fs::write(switch, "1").map_err(NetworkError::io(format!("turn on {switch}")))?;
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

fn read_state(state: &Path) -> BTreeMap<String, String> {
    fs::read(state).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
