//! A machine's configuration from flags.

mod fields;
mod files;
mod flags;
mod guest;
mod ports;
mod services;
pub mod size;

use std::path::Path;

use caddis_api::{RawConfig, fields::unknown};
use serde_json::{Map, Value, json};

use self::fields::object;
use crate::{CliError, words};

pub use flags::{BuildFlags, MachineFlags, VmFlags};
pub use guest::{check as check_guest, presets};
pub use services::without_effect;

/// Where a machine's configuration names those it stands in for.
const STANDBY_FOR: &str = "FLY_STANDBY_FOR";

/// What `run` and `create` add.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub image: Option<String>,
    pub command: Vec<String>,
    pub auto_destroy: bool,
}

/// The configuration of a new machine.
pub fn build(
    flags: &MachineFlags,
    program: &Program,
    directory: &Path,
) -> Result<RawConfig, CliError> {
    let mut config = match &flags.machine_config {
        Some(source) => read_config(source, directory)?,
        None => Map::new(),
    };
    if let Some(image) = &program.image {
        config.insert("image".to_owned(), json!(image));
    }
    let image = config.get("image").and_then(Value::as_str);
    flags.build.refuse(image)?;
    if image.is_none_or(str::is_empty) && !config.contains_key("containers") {
        let unknown = unknown(&Value::Object(config));
        let hint: Vec<_> = unknown.iter().map(|text| format!("Warning: {text}")).collect();
        return Err(CliError::Failed {
            message: "image argument can't be an empty string".to_owned(),
            hint: (!hint.is_empty()).then(|| hint.join("\n")),
            request_id: None,
            is_refusal: false,
        });
    }
    if program.auto_destroy {
        config.insert("auto_destroy".to_owned(), json!(true));
    }
    if !program.command.is_empty() {
        object(&mut config, "init").insert("cmd".to_owned(), json!(program.command));
    }
    apply(&mut config, flags, directory)?;
    if flags.restart.is_none() {
        let default = match (program.auto_destroy, &flags.schedule) {
            (true, _) => Some("no"),
            (false, Some(_)) => Some("on-failure"),
            (false, None) => None,
        };
        if let Some(policy) = default {
            object(&mut config, "restart").entry("policy").or_insert_with(|| json!(policy));
        }
    }
    Ok(config.into())
}

/// A machine's configuration with what the flags change of it.
pub fn change(
    config: &RawConfig,
    flags: &MachineFlags,
    directory: &Path,
) -> Result<Map<String, Value>, CliError> {
    let mut config = match &flags.machine_config {
        Some(source) => {
            // A whole configuration takes the place of the old one; what it leaves out of it, image
            // and guest, stays.
            let mut new = read_config(source, directory)?;
            for key in ["image", "guest"] {
                if let Some(value) = config.field(key).filter(|_| !new.contains_key(key)) {
                    new.insert(key.to_owned(), value);
                }
            }
            new
        }
        None => config.fields(),
    };
    flags.build.refuse(None)?;
    apply(&mut config, flags, directory)?;
    Ok(config)
}

/// Whether a whole configuration is given that says which image to run.
pub fn names_image(flags: &MachineFlags, directory: &Path) -> Result<bool, CliError> {
    let Some(source) = &flags.machine_config else { return Ok(false) };
    Ok(read_config(source, directory)?.contains_key("image"))
}

/// Gives a configuration these processors and so much memory.
pub fn set_vm(config: &mut Map<String, Value>, flags: &VmFlags) -> Result<(), CliError> {
    guest::set(config, flags, &[])
}

/// Puts an image in.
pub fn set_image(config: &mut Map<String, Value>, image: &str) -> Result<(), CliError> {
    BuildFlags::default().refuse(Some(image))?;
    config.insert("image".to_owned(), json!(image));
    Ok(())
}

/// Sets the command, split into words as a shell does; an empty one is that of the image again.
pub fn set_command(config: &mut Map<String, Value>, command: &str) -> Result<(), CliError> {
    let words = words::split("command", command)?;
    match words.is_empty() {
        true => drop(object(config, "init").remove("cmd")),
        false => drop(object(config, "init").insert("cmd".to_owned(), json!(words))),
    }
    Ok(())
}

/// Adds mounts, each a volume's id or name and a path, and maybe options, which are ignored but for
/// `ro`: who asks for that must not have a volume that is written to.
pub fn add_mounts(config: &mut Map<String, Value>, volumes: &[String]) -> Result<(), CliError> {
    let mut mounts = Vec::new();
    for given in volumes {
        let mut parts = given.split(':');
        let (volume, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if volume.is_empty() || path.is_empty() {
            return Err(CliError::new(format!("Can't infer volume and mount path from '{given}'")));
        }
        if parts.any(|options| options.split(',').any(|option| option == "ro")) {
            return Err(CliError::new(format!(
                "volumes are mounted read-write: remove 'ro' from '{given}'"
            )));
        }
        mounts.push(json!({ "volume": volume, "path": path }));
    }
    if !mounts.is_empty() {
        config.insert("mounts".to_owned(), json!(mounts));
    }
    Ok(())
}

/// Whether a machine with this configuration stands in for others, and so isn't launched.
pub fn is_standby(config: &Map<String, Value>) -> bool {
    config.get("standbys").and_then(Value::as_array).is_some_and(|standbys| !standbys.is_empty())
}

fn apply(
    config: &mut Map<String, Value>,
    flags: &MachineFlags,
    directory: &Path,
) -> Result<(), CliError> {
    if let Some(container) = &flags.container {
        // The server has no containers yet, and says so when some are configured.
        return Err(CliError::new(format!("container \"{container}\" not found")));
    }
    merge_pairs(config, "env", &flags.env)?;
    merge_pairs(config, "metadata", &flags.metadata)?;
    guest::set(config, &flags.vm, &flags.kernel_arg)?;
    if let Some(entrypoint) = &flags.entrypoint {
        let words = words::split("entrypoint", entrypoint)?;
        object(config, "init").insert("entrypoint".to_owned(), json!(words));
    }
    set_restart(config, flags)?;
    if let Some(schedule) = &flags.schedule {
        config.insert("schedule".to_owned(), json!(schedule));
    }
    if flags.skip_dns_registration {
        object(config, "dns").insert("skip_registration".to_owned(), json!(true));
    }
    set_disks(config, flags)?;
    files::read_local(config, directory)?;
    files::add(config, flags, directory)?;
    ports::add(config, &flags.port)?;
    services::set(config, flags)?;
    if let Some(ids) = &flags.standby_for {
        set_standbys(config, ids);
    }
    Ok(())
}

fn read_config(source: &str, directory: &Path) -> Result<Map<String, Value>, CliError> {
    let text = if source.trim_start().starts_with('{') {
        source.to_owned()
    } else if source.ends_with(".json") {
        let path = directory.join(source);
        std::fs::read_to_string(&path)
            .map_err(|e| CliError::new(format!("could not read {}: {e}", path.display())))?
    } else {
        return Err(CliError::new(format!("invalid machine config source: \"{source}\"")));
    };
    serde_json::from_str(&text).map_err(|e| CliError::new(format!("invalid machine config: {e}")))
}

fn merge_pairs(
    config: &mut Map<String, Value>,
    name: &str,
    pairs: &[String],
) -> Result<(), CliError> {
    for pair in pairs {
        let parts = pair.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = parts.ok_or_else(|| {
            CliError::new(format!("invalid key/value pairs specified for flag {name}"))
        })?;
        object(config, name).insert(key.to_owned(), json!(value));
    }
    Ok(())
}

fn set_restart(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let policy = match flags.restart.as_deref() {
        Some("no" | "never") => "no",
        Some("on-failure" | "on-fail") => "on-failure",
        Some("always") => "always",
        Some("") => {
            config.remove("restart");
            return Ok(());
        }
        Some(_) => {
            return Err(CliError::new("invalid restart provided: use no, on-failure or always"));
        }
        None => return Ok(()),
    };
    object(config, "restart").insert("policy".to_owned(), json!(policy));
    Ok(())
}

fn set_disks(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let parse = |flag: &str, text: &str, unit: u64| match size::parse(text, unit) {
        Some(size) => Ok(size),
        None => Err(CliError::new(format!("invalid size '{text}' for {flag}: write 10 or 10gb"))),
    };
    if let Some(persist) = &flags.rootfs_persist {
        if !["never", "always", "restart"].contains(&persist.as_str()) {
            return Err(CliError::new(
                "invalid rootfs-persist value, must be one of: never, always, restart",
            ));
        }
        object(config, "rootfs").insert("persist".to_owned(), json!(persist));
    }
    if let Some(text) = &flags.rootfs_size {
        match parse("--rootfs-size", text, 1 << 30)? {
            0 => drop(object(config, "rootfs").remove("size_gb")),
            size => drop(object(config, "rootfs").insert("size_gb".to_owned(), json!(size))),
        }
    }
    if let Some(text) = &flags.swap_size {
        match size::parse(text, 1 << 20) {
            None | Some(0) => return Err(CliError::new("--swap-size must be greater than zero")),
            Some(size) => object(config, "init").insert("swap_size_mb".to_owned(), json!(size)),
        };
    }
    if let Some(text) = &flags.cachedrive_size {
        match parse("--cachedrive-size", text, 1 << 20)? {
            0 => drop(config.remove("cache_drive")),
            size => drop(object(config, "cache_drive").insert("size_mb".to_owned(), json!(size))),
        }
    }
    Ok(())
}

/// Has the machine stand in for these; for none when there are none.
pub fn set_standbys(config: &mut Map<String, Value>, ids: &[String]) {
    let ids: Vec<_> = ids.iter().filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        config.remove("standbys");
        if let Some(env) = config.get_mut("env").and_then(Value::as_object_mut) {
            env.remove(STANDBY_FOR);
        }
        return;
    }
    let joined = ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(",");
    config.insert("standbys".to_owned(), json!(ids));
    object(config, "env").insert(STANDBY_FOR.to_owned(), json!(joined));
}

#[cfg(test)]
mod tests;
