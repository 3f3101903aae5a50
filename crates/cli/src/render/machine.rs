//! Parts of a machine as tables show them.

use caddis_api::{
    Machine, MachineConfig, MachineState,
    config::{Guest, Mount},
    event::MachineEvent,
    machine::{CheckState, CheckStatus, ImageRef},
};

/// The typed reading of its configuration; the default when the server left it out or wrote what we
/// can't read.
pub fn config(machine: &Machine) -> MachineConfig {
    machine.config.as_ref().and_then(|raw| caddis_api::validate::read(raw).ok()).unwrap_or_default()
}

/// A value of its metadata.
pub fn metadata(machine: &Machine, name: &str) -> Option<String> {
    machine.config.as_ref()?.metadata(name)
}

/// What its check named `role` says.
pub fn role(machine: &Machine) -> Option<&str> {
    let check = machine.checks.as_ref()?.iter().find(|check| check.name == "role")?;
    Some(check.output.as_str()).filter(|role| !role.is_empty())
}

/// `repository:tag[ (fly.version label)]`.
pub fn image(image: &ImageRef) -> String {
    let version = image.labels.as_ref().and_then(|labels| labels.get("fly.version"));
    let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    let version = version.map(|version| format!(" ({version})")).unwrap_or_default();
    format!("{}{tag}{version}", image.repository)
}

/// `registry/repository[:tag]@digest`.
pub fn full_image(image: &ImageRef) -> String {
    let registry =
        if image.registry.is_empty() { String::new() } else { format!("{}/", image.registry) };
    let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = if image.digest.is_empty() { String::new() } else { format!("@{}", image.digest) };
    format!("{registry}{}{tag}{digest}", image.repository)
}

/// `shared-cpu-1x:256MB`.
pub fn size(guest: &Guest) -> String {
    let cpus = guest.cpus.unwrap_or(1);
    let name = match guest.cpu_kind.as_deref() {
        Some("performance") => format!("performance-{cpus}x"),
        _ => format!("shared-cpu-{cpus}x"),
    };
    format!("{name}:{}MB", guest.memory_mb.unwrap_or(256))
}

/// Stands for results of checks that say nothing, since the machine does not run.
pub const NOT_APPLICABLE: &str = "n/a";

/// Its checks, nothing where it has none, and [`NOT_APPLICABLE`] where it does not run: their last
/// results say nothing then.
fn summary(machine: &Machine, text: impl FnOnce(&[CheckStatus]) -> String) -> String {
    match machine.checks.as_deref() {
        None | Some([]) => String::new(),
        Some(_) if machine.state != MachineState::Started => NOT_APPLICABLE.to_owned(),
        Some(checks) => text(checks),
    }
}

fn count(checks: &[CheckStatus], state: CheckState) -> usize {
    checks.iter().filter(|check| check.status == state).count()
}

/// `passing/total`.
pub fn checks(machine: &Machine) -> String {
    summary(machine, |checks| format!("{}/{}", count(checks, CheckState::Passing), checks.len()))
}

/// `3 total, 1 passing, 1 warning, 1 critical`, without those of which there are none.
pub fn checks_in_words(machine: &Machine) -> String {
    summary(machine, |checks| {
        let states = [CheckState::Passing, CheckState::Warning, CheckState::Critical];
        let counted = states.map(|state| (count(checks, state), state.as_str()));
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        let words: String = counted.map(|(count, state)| format!(", {count} {state}")).collect();
        format!("{} total{words}", checks.len())
    })
}

/// How a check of a machine stands.
pub fn check_status(machine: &Machine, check: &CheckStatus) -> String {
    let runs = machine.state == MachineState::Started;
    (if runs { check.status.as_str() } else { NOT_APPLICABLE }).to_owned()
}

/// What an event has to say beyond its columns.
pub fn event_info(event: &MachineEvent) -> String {
    let Some(details) = event.exit_details() else {
        let migrated = matches!(event.kind.as_str(), "launch" | "created")
            && event
                .request
                .as_ref()
                .and_then(|request| request.get("migrated"))
                .and_then(|v| v.as_bool())
                == Some(true);
        return match start_reason(event) {
            _ if migrated => "migrated=true".to_owned(),
            Some(reason) => reason,
            None => message(event),
        };
    };
    let exit = details.exit_event;
    let cause = exit.cause.map(|cause| format!(",cause={cause}")).unwrap_or_default();
    let message = exit.message.map(|message| format!(" ({message})")).unwrap_or_default();
    format!(
        "exit_code={},oom_killed={},requested_stop={}{cause}{message}",
        exit.exit_code, exit.oom_killed, exit.requested_stop
    )
}

/// What an event tells in words.
fn message(event: &MachineEvent) -> String {
    event.told()["message"].as_str().unwrap_or_default().to_owned()
}

/// How a machine was started, where that has a reason.
fn start_reason(event: &MachineEvent) -> Option<String> {
    let told = |key: &str| event.details.as_ref().and_then(|details| details[key].as_str());
    match (told("start_kind"), told("start_reason").filter(|reason| !reason.is_empty())) {
        (Some(kind), Some(reason)) => Some(format!("start_kind={kind} ({reason})")),
        _ => None,
    }
}

/// The first volume that is mounted.
pub fn volume(config: &MachineConfig) -> String {
    let mount = config.mounts.as_ref().and_then(|mounts| mounts.first());
    mount.and_then(|mount| mount.volume.clone()).unwrap_or_default()
}

/// The volumes that are mounted, and where.
pub fn mounts(config: &MachineConfig) -> Vec<String> {
    let mount = |mount: &Mount| {
        let volume = mount.volume.as_deref().unwrap_or_default();
        format!("{volume}:{}", mount.path.as_deref().unwrap_or_default())
    };
    config.mounts.iter().flatten().map(mount).collect()
}

/// What its metadata says it is one of.
pub fn process_group(config: &MachineConfig) -> String {
    let metadata = config.metadata.as_ref();
    metadata.and_then(|metadata| metadata.get("fly_process_group").cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_message_of_an_event_of_any_kind_is_told_unless_there_is_more_to_say() {
        let info = |kind: &str, details: serde_json::Value| {
            let told = json!({
                "id": "01JZX3F3Q8D2000000000000AA", "type": kind, "status": "started",
                "source": "flyd", "timestamp": 1, "details": details,
            });
            event_info(&serde_json::from_value(told).unwrap())
        };
        for kind in ["volume", "host_status", "network", "restart", "a kind to come"] {
            let details = json!({ "message": "the disk is full", "level": "warning" });
            assert_eq!(info(kind, details), "the disk is full", "{kind}");
            assert_eq!(info(kind, json!({ "level": "info" })), "", "{kind}");
        }
        let start = json!({ "start_kind": "cold", "start_reason": "no room", "message": "x" });
        assert_eq!(info("start", start), "start_kind=cold (no room)");
    }
}
