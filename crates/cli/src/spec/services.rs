//! When a machine starts and stops because of its services.

use serde_json::{Map, Value, json};

use super::flags::MachineFlags;
use crate::CliError;

/// Applies the flags to all services.
pub fn set(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let autostop = match flags.autostop.as_deref() {
        None => None,
        Some("off" | "false") => Some(json!(false)),
        Some("stop" | "true") => Some(json!(true)),
        Some("suspend") => Some(json!("suspend")),
        Some(other) => {
            return Err(CliError::new(format!(
                "invalid autostop '{other}': use off, stop or suspend"
            )));
        }
    };
    for service in config.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(autostop) = &autostop {
            service["autostop"] = autostop.clone();
        }
        if let Some(autostart) = flags.autostart {
            service["autostart"] = json!(autostart);
        }
        // The server reads times, and says what is wrong with one.
        for (name, time) in [("idle_timeout", &flags.idle_timeout), ("max_drain", &flags.max_drain)]
        {
            if let Some(time) = time {
                service[name] = json!(time);
            }
        }
        if let Some(count) = flags.min_machines_running {
            service["min_machines_running"] = json!(count);
        }
    }
    Ok(())
}

/// A line for each flag that does nothing, as it is about services and the machine has none.
pub fn without_effect(config: &Map<String, Value>, flags: &MachineFlags) -> Vec<String> {
    let services = config.get("services").and_then(Value::as_array);
    if services.is_some_and(|services| !services.is_empty()) {
        return Vec::new();
    }
    let given = [
        ("--autostart", flags.autostart.is_some()),
        ("--autostop", flags.autostop.is_some()),
        ("--idle-timeout", flags.idle_timeout.is_some()),
        ("--max-drain", flags.max_drain.is_some()),
        ("--min-machines-running", flags.min_machines_running.is_some()),
    ];
    let told = |flag: &str| {
        format!("{flag} has no effect: the machine has no services, add one with --port")
    };
    given.into_iter().filter(|(_, is_given)| *is_given).map(|(flag, _)| told(flag)).collect()
}
