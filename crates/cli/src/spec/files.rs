//! Files that are written into the VM.

use std::path::Path;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::{fields::list, flags::MachineFlags};
use crate::CliError;

/// Applies the flags. An empty value removes a file.
pub fn add(
    config: &mut Map<String, Value>,
    flags: &MachineFlags,
    directory: &Path,
) -> Result<(), CliError> {
    let flags = [
        ("file-local", &flags.file_local),
        ("file-literal", &flags.file_literal),
        ("file-secret", &flags.file_secret),
    ];
    for (flag, argument) in
        flags.into_iter().flat_map(|(flag, arguments)| arguments.iter().map(move |one| (flag, one)))
    {
        let (path, value) = argument
            .split_once('=')
            .ok_or_else(|| CliError::new(format!("invalid {flag} argument {argument}")))?;
        if !path.starts_with('/') {
            return Err(CliError::new(format!("guest path, {path}, must be absolute")));
        }
        let files = list(config, "files");
        files.retain(|file| file.get("guest_path").and_then(Value::as_str) != Some(path));
        if value.is_empty() {
            continue;
        }
        files.push(match flag {
            "file-secret" => json!({ "guest_path": path, "secret_name": value }),
            "file-local" => {
                json!({ "guest_path": path, "raw_value": encode(&read(&directory.join(value))?) })
            }
            _ => json!({ "guest_path": path, "raw_value": encode(value.as_bytes()) }),
        });
    }
    Ok(())
}

/// Reads the local files that a configuration names.
pub fn read_local(config: &mut Map<String, Value>, directory: &Path) -> Result<(), CliError> {
    for file in config.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(fields) = file.as_object_mut() else { continue };
        if let Some(Value::String(path)) = fields.remove("local_path") {
            fields.insert("raw_value".to_owned(), json!(encode(&read(&directory.join(path))?)));
        }
    }
    Ok(())
}

fn encode(content: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(content)
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path)
        .map_err(|e| CliError::new(format!("could not read {}: {e}", path.display())))
}
