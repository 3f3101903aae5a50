//! Checks a configuration and brings it into the form it is stored in: defaults for `guest` and
//! `restart` filled in, `size` expanded, services completed, all else as sent.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

mod checks;
mod dns;
mod http;
mod mounts;
mod policies;
mod services;
mod size;
mod volumes;

pub use checks::{MAX_CHECK_TIME, MAX_CHECKS, MIN_CHECK_INTERVAL};
pub use policies::{MAX_POLICY_ITEMS, MAX_POLICY_NAME, MAX_POLICY_RULES, check_policy_id};
pub use services::{MAX_PORTS, MAX_SERVICES};
pub use size::{MAX_METADATA_BYTES, MAX_OTHER_BYTES};
pub use volumes::{MAX_VOLUME_NAME, check_name as check_volume_name};

use crate::{
    ApiError,
    config::{Guest, MachineConfig, RawConfig, StopConfig, Ulimit},
};

/// Largest time between a stop signal and SIGKILL, seconds.
pub const MAX_STOP_TIMEOUT_SECONDS: u64 = 300;

/// Largest root file system, GiB.
pub const MAX_ROOTFS_GIB: u64 = 500;
/// Largest sum of the contents of `files`, bytes.
pub const MAX_FILES_BYTES: usize = 4 * 1024 * 1024;
/// What each of them takes besides content and path, bytes.
const EACH_FILE: usize = 64;
/// Largest sum of argument and environment strings, bytes: what Linux gives an exec by default,
/// halved.
pub const MAX_PROGRAM_BYTES: usize = 1024 * 1024;
/// Limits of processes, at least: fewer open files start no program.
const MIN_ULIMIT: u64 = 16;
/// Limits of processes, at most: so many open files the kernel can count.
const MAX_ULIMIT: u64 = 1 << 30;
/// What each string takes besides, bytes: its end and where it is, as Linux counts.
const EACH: usize = 9;
/// Most programs of a machine; the reference names no number.
pub const MAX_PROCESSES: usize = 64;

const SHARED_CPUS: &[u32] = &[1, 2, 4, 6, 8];
const PERFORMANCE_CPUS: &[u32] = &[1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64, 128];

/// Reads, checks and completes a configuration.
///
/// # Errors
/// 400 naming the field, the value's fault and the limit.
pub fn normalise(raw: RawConfig) -> Result<(RawConfig, MachineConfig), ApiError> {
    let mut raw = raw.fields();
    raw.retain(|_, value| !value.is_null());
    let mut config = read_fields(raw.clone())?;
    check_objects(&raw, &config)?;
    complete_guest(&mut raw, &mut config)?;
    complete_restart(&mut raw, &mut config);
    services::complete(&mut raw, &config);
    raw.entry("init").or_insert_with(|| json!({}));
    check(&config)?;
    size::check(&raw, &config)?;
    Ok((raw.into(), config))
}

/// The typed reading of a configuration; checks types only. Services and checks that can't be read
/// are left out: those of configurations that an earlier server stored were not checked.
///
/// # Errors
/// 400 naming the field.
pub fn read(raw: &RawConfig) -> Result<MachineConfig, ApiError> {
    read_fields(raw.fields()).or_else(|_| {
        let mut fields = raw.fields();
        fields.remove("services");
        fields.remove("checks");
        read_fields(fields)
    })
}

fn read_fields(raw: Map<String, Value>) -> Result<MachineConfig, ApiError> {
    let mut config: MachineConfig = serde_path_to_error::deserialize(Value::Object(raw))
        .map_err(|e| ApiError::invalid(format!("invalid config.{}: {}", e.path(), e.inner())))?;
    if config.disable_machine_autostart == Some(true) {
        // What it said before each service could.
        for service in config.services.iter_mut().flatten() {
            service.autostart = Some(false);
        }
    }
    Ok(config)
}

/// Refuses lists in the place of objects, which serde reads field by field.
fn check_objects(raw: &Map<String, Value>, config: &MachineConfig) -> Result<(), ApiError> {
    fn check(path: &str, raw: &Value, read: &Value) -> Result<(), ApiError> {
        match (raw, read) {
            (Value::Array(_), Value::Object(_)) => {
                Err(ApiError::invalid(format!("invalid {path}, it must be an object")))
            }
            (Value::Array(raw), Value::Array(read)) => {
                let mut pairs = raw.iter().zip(read).enumerate();
                pairs.try_for_each(|(index, (raw, read))| {
                    check(&format!("{path}[{index}]"), raw, read)
                })
            }
            (Value::Object(raw), Value::Object(read)) => {
                let mut pairs =
                    raw.iter().filter_map(|(key, raw)| Some((key, raw, read.get(key)?)));
                pairs.try_for_each(|(key, raw, read)| check(&format!("{path}.{key}"), raw, read))
            }
            _ => Ok(()),
        }
    }
    check("config", &json!(raw), &json!(config))
}

fn complete_guest(
    raw: &mut Map<String, Value>,
    config: &mut MachineConfig,
) -> Result<(), ApiError> {
    let preset = match (&config.size, &config.guest) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "config.size and config.guest exclude each other, give one",
            ));
        }
        (Some(size), None) => preset(size)?,
        (None, _) => Guest::default(),
    };
    let mut guest = config.guest.take().unwrap_or(preset);
    let kind = guest.cpu_kind.get_or_insert_with(|| "shared".to_owned()).clone();
    let (allowed, per_cpu_min, per_cpu_max, step) = match kind.as_str() {
        "shared" => (SHARED_CPUS, 256, 2048, 256),
        "performance" => (PERFORMANCE_CPUS, 2048, 8192, 1024),
        _ => {
            return Err(ApiError::invalid(
                "invalid config.guest.cpu_kind, use shared or performance",
            ));
        }
    };
    let cpus = *guest.cpus.get_or_insert(1);
    if !allowed.contains(&cpus) {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.cpus, {cpus} is not one of {allowed:?} for {kind} CPUs"
        )));
    }
    let memory = *guest.memory_mb.get_or_insert(u64::from(cpus) * per_cpu_min);
    let (minimum, maximum) = (u64::from(cpus) * per_cpu_min, u64::from(cpus) * per_cpu_max);
    if memory < minimum {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.memory_mb, minimum required {minimum} MiB"
        )));
    }
    if memory > maximum {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.memory_mb, cannot exceed {maximum} MiB"
        )));
    }
    if !memory.is_multiple_of(step) {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.memory_mb, must be a multiple of {step} MiB"
        )));
    }
    if guest.max_memory_mb.is_some_and(|max| max < memory || max > maximum) {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.max_memory_mb, must be between {memory} and {maximum} MiB"
        )));
    }
    if guest.gpus.is_some_and(|gpus| gpus > 0) {
        return Err(ApiError::invalid("invalid config.guest.gpus, this server offers no GPUs"));
    }
    if let Some(feature) = guest.required_host_features.iter().flatten().next() {
        return Err(ApiError::invalid(format!(
            "invalid config.guest.required_host_features, no host of this server has '{feature}'"
        )));
    }
    raw.remove("size");
    let entry = raw.entry("guest").or_insert_with(|| json!({}));
    if let Value::Object(map) = entry {
        map.retain(|_, value| !value.is_null());
        map.insert("cpu_kind".to_owned(), json!(kind));
        map.insert("cpus".to_owned(), json!(cpus));
        map.insert("memory_mb".to_owned(), json!(memory));
    }
    config.guest = Some(guest);
    config.size = None;
    Ok(())
}

fn preset(size: &str) -> Result<Guest, ApiError> {
    let invalid = || {
        ApiError::invalid(format!(
            "invalid config.size '{size}', use for example shared-cpu-1x or performance-2x"
        ))
    };
    let (kind, count, per_cpu) = if let Some(count) = size.strip_prefix("shared-cpu-") {
        ("shared", count, 256)
    } else if let Some(count) = size.strip_prefix("performance-") {
        ("performance", count, 2048)
    } else {
        return Err(invalid());
    };
    let cpus: u32 =
        count.strip_suffix('x').and_then(|count| count.parse().ok()).ok_or_else(invalid)?;
    Ok(Guest {
        cpu_kind: Some(kind.to_owned()),
        cpus: Some(cpus),
        memory_mb: Some(u64::from(cpus).saturating_mul(per_cpu)),
        ..Guest::default()
    })
}

fn complete_restart(raw: &mut Map<String, Value>, config: &mut MachineConfig) {
    let (policy, retries) = (config.restart_policy(), config.max_retries());
    let restart = config.restart.get_or_insert_default();
    restart.policy = Some(policy);
    let entry = raw.entry("restart").or_insert_with(|| json!({}));
    if let Value::Object(map) = entry {
        map.insert("policy".to_owned(), json!(policy));
        if policy == crate::config::RestartPolicy::OnFailure {
            map.insert("max_retries".to_owned(), json!(retries));
        }
    }
}

fn check(config: &MachineConfig) -> Result<(), ApiError> {
    if config.containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        return Err(ApiError::invalid(
            "config.containers is not supported by this server, use one machine per container",
        ));
    }
    if config.image.as_deref().is_none_or(|image| image.trim().is_empty()) {
        return Err(ApiError::invalid("invalid config.image, an image reference is required"));
    }
    check_stop(config.stop_config.as_ref())?;
    dns::check(config.dns.as_ref())?;
    check_program(config)?;
    check_files(config)?;
    if config
        .rootfs
        .as_ref()
        .and_then(|rootfs| rootfs.size_gb)
        .is_some_and(|size| size > MAX_ROOTFS_GIB)
    {
        return Err(ApiError::invalid(format!(
            "invalid config.rootfs.size_gb, cannot exceed {MAX_ROOTFS_GIB}"
        )));
    }
    if let Some(persist) = config.rootfs.as_ref().and_then(|rootfs| rootfs.persist.as_deref())
        && !["", "none", "never", "restart", "always"].contains(&persist)
    {
        return Err(ApiError::invalid(
            "invalid config.rootfs.persist, use never, restart or always",
        ));
    }
    mounts::check(config.mounts.as_deref().unwrap_or_default())?;
    if let Some(schedule) = config.schedule.as_deref()
        && !["hourly", "daily", "weekly", "monthly"].contains(&schedule)
    {
        return Err(ApiError::invalid(
            "invalid config.schedule, use hourly, daily, weekly or monthly",
        ));
    }
    services::check(config.services.as_deref().unwrap_or_default())?;
    checks::check(config)?;
    for argument in config.kernel_args() {
        if !argument.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || argument.len() > 1024 {
            return Err(ApiError::invalid(
                "invalid kernel_args, use printable ASCII of at most 1024 characters each",
            ));
        }
    }
    if config.kernel_args().len() > 32 {
        return Err(ApiError::invalid("invalid kernel_args, at most 32 are allowed"));
    }
    Ok(())
}

/// Whether a number is there: clients send zero for what was not given.
fn is_given(number: Option<u32>) -> bool {
    number.is_some_and(|number| number > 0)
}

fn check_stop(stop: Option<&StopConfig>) -> Result<(), ApiError> {
    let Some(stop) = stop else { return Ok(()) };
    if let Some(reason) = stop.timeout.and_then(|timeout| timeout.check_unit().err()) {
        return Err(ApiError::invalid(format!("invalid config.stop_config.timeout, {reason}")));
    }
    if stop.timeout.is_some_and(|timeout| timeout.0.as_secs() > MAX_STOP_TIMEOUT_SECONDS) {
        return Err(ApiError::invalid(format!(
            "invalid config.stop_config.timeout, cannot exceed {MAX_STOP_TIMEOUT_SECONDS}s"
        )));
    }
    Ok(())
}

fn check_program(config: &MachineConfig) -> Result<(), ApiError> {
    let mut size = check_environment("config.env", config.env.as_ref())?;
    if let Some(init) = &config.init {
        size += check_arguments("config.init", [&init.exec, &init.entrypoint, &init.cmd])?;
        let ulimits = init.ulimits.clone().unwrap_or_default();
        check_ulimit("config.init.ulimits.nofile", ulimits.nofile)?;
        check_ulimit("config.init.ulimits.nproc", ulimits.nproc)?;
    }
    let processes = config.processes.as_deref().unwrap_or_default();
    if processes.len() > 1 && config.init.as_ref().and_then(|init| init.pid_namespace) == Some(true)
    {
        return Err(ApiError::invalid(
            "invalid config.init.pid_namespace, it is not available with several processes, use \
             one",
        ));
    }
    if processes.len() > MAX_PROCESSES {
        return Err(ApiError::invalid(format!(
            "invalid config.processes, cannot exceed {MAX_PROCESSES}"
        )));
    }
    for (index, process) in processes.iter().enumerate() {
        let field = format!("config.processes[{index}]");
        size += check_environment(&format!("{field}.env"), process.env.as_ref())?;
        size += check_arguments(&field, [&process.exec, &process.entrypoint, &process.cmd])?;
        for variable in process.env_from.iter().flatten() {
            size += check_variable(&format!("{field}.env_from"), &variable.env_var, "")?;
        }
        if process.user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err(ApiError::invalid(format!("invalid {field}.user, it can't contain a NUL")));
        }
    }
    if size > MAX_PROGRAM_BYTES {
        return Err(ApiError::invalid(format!(
            "arguments and environment take {size} bytes, cannot exceed {MAX_PROGRAM_BYTES}"
        )));
    }
    Ok(())
}

fn check_ulimit(field: &str, limit: Option<Ulimit>) -> Result<(), ApiError> {
    let Ulimit { soft, hard } = limit.unwrap_or_default();
    if [soft, hard].into_iter().flatten().any(|number| !(MIN_ULIMIT..=MAX_ULIMIT).contains(&number))
    {
        return Err(ApiError::invalid(format!(
            "invalid {field}, use numbers from {MIN_ULIMIT} to {MAX_ULIMIT}"
        )));
    }
    if soft.zip(hard).is_some_and(|(soft, hard)| soft > hard) {
        return Err(ApiError::invalid(format!(
            "invalid {field}, the soft limit cannot exceed the hard one"
        )));
    }
    Ok(())
}

/// Gives the size, bytes.
fn check_environment(
    field: &str,
    env: Option<&BTreeMap<String, String>>,
) -> Result<usize, ApiError> {
    env.into_iter().flatten().map(|(key, value)| check_variable(field, key, value)).sum()
}

fn check_variable(field: &str, key: &str, value: &str) -> Result<usize, ApiError> {
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        return Err(ApiError::invalid(format!(
            "invalid {field}, '{}' is not a valid name, or its value contains a NUL",
            key.escape_debug()
        )));
    }
    if key.starts_with("FLY_") && key != "FLY_STANDBY_FOR" && key != "FLY_PROCESS_GROUP" {
        return Err(ApiError::invalid(format!(
            "invalid {field}, '{key}': names that begin with FLY_ are reserved"
        )));
    }
    Ok(key.len() + value.len() + EACH)
}

/// Gives the size, bytes.
fn check_arguments(field: &str, parts: [&Option<Vec<String>>; 3]) -> Result<usize, ApiError> {
    let words = || parts.into_iter().flatten().flatten();
    if words().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid(format!("invalid {field}, arguments can't contain a NUL")));
    }
    Ok(words().map(|word| word.len() + EACH).sum())
}

fn check_files(config: &MachineConfig) -> Result<(), ApiError> {
    let mut size = 0;
    for (index, file) in config.files.iter().flatten().enumerate() {
        let field = |name: &str| format!("config.files[{index}].{name}");
        if !file.guest_path.starts_with('/')
            || file.guest_path.contains('\0')
            || file.guest_path.ends_with('/')
        {
            return Err(ApiError::invalid(format!(
                "invalid {}, must be the absolute path of a file",
                field("guest_path")
            )));
        }
        let sources =
            [file.raw_value.is_some(), file.secret_name.is_some(), file.image_config.is_some()];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            return Err(ApiError::invalid(format!(
                "invalid config.files[{index}], give exactly one of raw_value, secret_name and \
                 image_config"
            )));
        }
        size += file.guest_path.len() + EACH_FILE;
        match file.content() {
            Some(Ok(content)) => size += content.len(),
            Some(Err(e)) => {
                return Err(ApiError::invalid(format!(
                    "invalid {}, not base64: {e}",
                    field("raw_value")
                )));
            }
            None => {}
        }
        if file.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(ApiError::invalid(format!(
                "invalid {}, at most 4095 (octal 7777)",
                field("mode")
            )));
        }
    }
    if size > MAX_FILES_BYTES {
        return Err(ApiError::invalid(format!(
            "config.files holds {size} bytes, cannot exceed {MAX_FILES_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
