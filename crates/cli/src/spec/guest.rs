//! Processors and memory, and the sizes that have names.

use serde_json::{Map, Value, json};

use super::{fields::object, flags::VmFlags, size};
use crate::CliError;

const MIB: u64 = 1 << 20;

/// Applies the flags.
pub fn set(
    config: &mut Map<String, Value>,
    flags: &VmFlags,
    kernel_arguments: &[String],
) -> Result<(), CliError> {
    if flags.vm_gpus.is_some() || flags.vm_gpu_kind.is_some() {
        return Err(CliError::new(
            "GPU machines are no longer supported: --vm-gpu-kind and --vm-gpus are no longer \
             accepted",
        ));
    }
    let mut set = |key: &str, value: Value| object(config, "guest").insert(key.to_owned(), value);
    if let Some(name) = &flags.vm_size {
        let preset = find(name)?;
        set("cpu_kind", json!(preset.kind));
        set("cpus", json!(preset.cpus));
        set("memory_mb", json!(preset.memory_mb));
    }
    if let Some(cpus) = flags.vm_cpus {
        if cpus <= 0 {
            return Err(CliError::new(format!("--vm-cpus must be greater than zero, got: {cpus}")));
        }
        set("cpus", json!(cpus));
    }
    if let Some(kind) = &flags.vm_cpu_kind {
        if !["shared", "performance"].contains(&kind.as_str()) {
            return Err(CliError::new("--vm-cpu-kind must be set to 'shared' or 'performance'"));
        }
        set("cpu_kind", json!(kind));
    }
    let memory = [
        ("--vm-memory", "memory_mb", &flags.vm_memory),
        ("--vm-max-memory", "max_memory_mb", &flags.vm_max_memory),
    ];
    for (flag, key, text) in memory {
        let Some(text) = text else { continue };
        match size::parse(text, MIB) {
            None => {
                return Err(CliError::new(format!(
                    "invalid memory size '{text}' for {flag}: write 512 or 512mb"
                )));
            }
            Some(0) => return Err(CliError::new(format!("{flag} cannot be zero"))),
            Some(mib) => set(key, json!(mib)),
        };
    }
    if !kernel_arguments.is_empty() {
        set("kernel_args", json!(kernel_arguments));
    }
    if let Some(id) = &flags.host_dedication_id {
        set("host_dedication_id", json!(id));
    }
    Ok(())
}

fn find(name: &str) -> Result<Preset, CliError> {
    let known = presets();
    if let Some(preset) = known.iter().find(|preset| preset.name == name) {
        return Ok(preset.clone());
    }
    if !name.starts_with("shared") && !name.starts_with("performance") {
        return Err(CliError::new(format!(
            "invalid machine preset requested, '{name}', expected to start with 'shared' or \
             'performance'"
        )));
    }
    let names: Vec<_> = known.into_iter().map(|preset| preset.name).collect();
    Err(CliError::new(format!(
        "'{name}' is an invalid machine size, choose one of: [{}]",
        names.join(", ")
    )))
}

/// Checks what a machine is to have before the server is asked: the reference's rules for updates.
pub fn check(config: &Map<String, Value>) -> Result<(), CliError> {
    let guest = config.get("guest");
    let field = |name: &str| guest.and_then(|guest| guest.get(name));
    let kind = field("cpu_kind").and_then(Value::as_str).unwrap_or("shared");
    let cpus = field("cpus").and_then(Value::as_u64).unwrap_or(1);
    let memory = field("memory_mb").and_then(Value::as_u64).unwrap_or(256);
    let (counts, multiple, least, most): (&[u64], u64, u64, u64) = match kind {
        "shared" => (&[1, 2, 4, 6, 8], 256, 256, 2048),
        "performance" => (&[1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64, 128], 1024, 2048, 8192),
        _ => {
            let hint = format!("Unknown kind '{kind}': use shared or performance.");
            return Err(CliError::with_hint("invalid CPU kind", hint));
        }
    };
    if !counts.contains(&cpus) {
        let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
        let hint = format!("A {kind} machine has {} CPUs, not {cpus}.", counts.join(", "));
        return Err(CliError::with_hint("invalid number of CPUs", hint));
    }
    if !memory.is_multiple_of(multiple) {
        let hint = format!(
            "The memory of a {kind} machine is a multiple of {multiple} MB, not {memory} MB."
        );
        return Err(CliError::with_hint("invalid memory size", hint));
    }
    let (least, most) = (least * cpus, most * cpus);
    if memory < least {
        let hint =
            format!("With {cpus} {kind} CPUs it is at least {least} MB: try --vm-memory {least}.");
        return Err(CliError::with_hint("memory size for config is too low", hint));
    }
    if memory > most {
        let hint = format!(
            "With {cpus} {kind} CPUs it is at most {most} MB: try --vm-memory {most}, or more \
             --vm-cpus."
        );
        return Err(CliError::with_hint("memory size for config is too high", hint));
    }
    Ok(())
}

/// A size of machine that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    pub name: String,
    pub kind: &'static str,
    pub cpus: u32,
    pub memory_mb: u32,
}

/// All of them.
pub fn presets() -> Vec<Preset> {
    let preset = |kind: &'static str, prefix: &str, cpus: u32, each: u32| Preset {
        name: format!("{prefix}-{cpus}x"),
        kind,
        cpus,
        memory_mb: cpus * each,
    };
    let shared = [1, 2, 4, 6, 8].map(|cpus| preset("shared", "shared-cpu", cpus, 256));
    let performance = [1, 2, 4, 6, 8, 10, 12, 14, 16]
        .map(|cpus| preset("performance", "performance", cpus, 2048));
    shared.into_iter().chain(performance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_checked_as_the_reference_does() {
        let verdict = |guest: Value| {
            check(json!({ "guest": guest }).as_object().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(verdict(json!({})), Ok(()));
        assert_eq!(
            verdict(json!({ "cpu_kind": "performance", "cpus": 2, "memory_mb": 4096 })),
            Ok(())
        );
        for (guest, expected) in [
            (json!({ "cpu_kind": "quick" }), "invalid CPU kind"),
            (json!({ "cpus": 3 }), "invalid number of CPUs"),
            (json!({ "memory_mb": 300 }), "invalid memory size"),
            (json!({ "cpus": 2, "memory_mb": 256 }), "memory size for config is too low"),
            (json!({ "memory_mb": 4096 }), "memory size for config is too high"),
        ] {
            assert_eq!(verdict(guest.clone()), Err(expected.to_owned()), "{guest}");
        }
    }
}
