//! Parts of a machine as tables show them.

use caddis_api::{
    Machine, MachineConfig,
    config::Guest,
    event::MachineEvent,
    machine::{CheckStatus, ImageRef},
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

/// `passing/total`, or nothing without checks.
pub fn checks(checks: Option<&[CheckStatus]>) -> String {
    match checks {
        None | Some([]) => String::new(),
        Some(checks) => {
            let passing = checks.iter().filter(|check| check.status == "passing").count();
            format!("{passing}/{}", checks.len())
        }
    }
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
        return if migrated { "migrated=true".to_owned() } else { start_reason(event) };
    };
    let exit = details.exit_event;
    let cause = exit.cause.map(|cause| format!(",cause={cause}")).unwrap_or_default();
    let message = exit.message.map(|message| format!(" ({message})")).unwrap_or_default();
    format!(
        "exit_code={},oom_killed={},requested_stop={}{cause}{message}",
        exit.exit_code, exit.oom_killed, exit.requested_stop
    )
}

/// How a machine was started, where that has a reason.
fn start_reason(event: &MachineEvent) -> String {
    let told = |key: &str| event.details.as_ref().and_then(|details| details[key].as_str());
    match (told("start_kind"), told("start_reason").filter(|reason| !reason.is_empty())) {
        (Some(kind), Some(reason)) => format!("start_kind={kind} ({reason})"),
        _ => String::new(),
    }
}

/// The volume that is mounted.
pub fn volume(config: &MachineConfig) -> String {
    let mount = config.mounts.as_ref().and_then(|mounts| mounts.first());
    mount.and_then(|mount| mount.volume.clone()).unwrap_or_default()
}

/// What its metadata says it is one of.
pub fn process_group(config: &MachineConfig) -> String {
    let metadata = config.metadata.as_ref();
    metadata.and_then(|metadata| metadata.get("fly_process_group").cloned()).unwrap_or_default()
}
