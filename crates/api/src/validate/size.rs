//! How large a configuration may be. Files, programs and metadata have bounds of their own; all
//! else, known or not, has one together: it is kept in memory as long as the machine is there.

use std::io;

use serde_json::{Map, Value};

use crate::{ApiError, config::MachineConfig};

/// Largest sum of all that is neither files, arguments, environment nor metadata, bytes of JSON.
pub const MAX_OTHER_BYTES: usize = 64 * 1024;
/// Largest sum of keys and values of metadata, bytes.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;

const OF_FILES: &[&str] = &["guest_path", "raw_value", "secret_name", "image_config", "mode"];
const OF_INIT: &[&str] = &["exec", "entrypoint", "cmd"];
const OF_PROCESSES: &[&str] = &["exec", "entrypoint", "cmd", "env", "env_from"];

pub(super) fn check(raw: &Map<String, Value>, config: &MachineConfig) -> Result<(), ApiError> {
    let metadata: usize =
        config.metadata.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > MAX_METADATA_BYTES {
        let text = format!(
            "invalid config.metadata, it has {metadata} bytes, cannot exceed {MAX_METADATA_BYTES}"
        );
        return Err(ApiError::invalid(text));
    }
    let names =
        config.files.iter().flatten().flat_map(|file| [&file.secret_name, &file.image_config]);
    let size = others(raw) + names.flatten().map(String::len).sum::<usize>();
    if size > MAX_OTHER_BYTES {
        return Err(ApiError::invalid(format!(
            "config has {size} bytes besides files, arguments, environment and metadata, cannot \
             exceed {MAX_OTHER_BYTES}; put more into config.files"
        )));
    }
    Ok(())
}

/// Bytes of JSON of what has no bound of its own.
fn others(raw: &Map<String, Value>) -> usize {
    let each = |value: &Value, known: &[&str]| match value {
        Value::Array(items) => items.iter().map(|item| unknown(item, known)).sum(),
        other => written(other),
    };
    let size = |(key, value): (&String, &Value)| match key.as_str() {
        "env" | "metadata" => 0,
        "files" => each(value, OF_FILES),
        "processes" => each(value, OF_PROCESSES),
        "init" => unknown(value, OF_INIT),
        _ => key.len() + written(value),
    };
    raw.iter().map(size).sum()
}

fn unknown(value: &Value, known: &[&str]) -> usize {
    match value {
        Value::Object(fields) => {
            let unknown = fields.iter().filter(|(key, _)| !known.contains(&key.as_str()));
            unknown.map(|(key, value)| key.len() + written(value)).sum()
        }
        other => written(other),
    }
}

/// Bytes of JSON of a value, which is not written anywhere.
fn written(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // Counting does not fail.
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{config::RawConfig, validate::normalise};

    use super::*;

    fn sized(more: Value) -> Result<(), String> {
        let mut config = json!({ "image": "a" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = RawConfig::from(config.as_object().unwrap().clone());
        normalise(config).map(drop).map_err(|error| error.message)
    }

    #[test]
    fn what_is_unknown_or_only_stored_is_bounded_wherever_it_stands() {
        let large = "x".repeat(MAX_OTHER_BYTES + 1);
        let many: Vec<_> = (0..MAX_OTHER_BYTES / 2 + 1).map(|_| 1).collect();
        let file = |more: Value| {
            let file = json!({ "guest_path": "/a", "raw_value": "", "more": more });
            json!({ "files": [file] })
        };
        for config in [
            json!({ "unknown": large }),
            json!({ "unknown": many }),
            json!({ (large.clone()): 1 }),
            json!({ "checks": { "a": { "type": "tcp", "port": 1, "more": many } } }),
            json!({ "services": [{ "internal_port": 1, "protocol": "tcp", "more": large }] }),
            json!({ "init": { "unknown": large } }),
            json!({ "guest": { "unknown": many } }),
            json!({ "processes": [{ "unknown": large }] }),
            file(json!(large)),
            json!({ "files": [{ "guest_path": "/a", "secret_name": large }] }),
        ] {
            let error = sized(config).unwrap_err();
            assert!(
                error.contains("cannot exceed 65536") && error.contains("config.files"),
                "{error}"
            );
        }
        assert!(
            sized(json!({ "metadata": { "a": large } })).unwrap_err().contains("config.metadata")
        );
    }

    #[test]
    fn what_has_a_bound_of_its_own_does_not_count_and_small_strings_count_for_what_they_take() {
        let large = "x".repeat(MAX_OTHER_BYTES);
        let content = "A".repeat(4 * MAX_OTHER_BYTES);
        sized(json!({ "files": [{ "guest_path": "/a", "raw_value": content }] })).unwrap();
        let spread = json!({
            "env": { "A": large }, "init": { "cmd": [large] }, "metadata": { "a": &large[2..] },
        });
        sized(spread).unwrap();
        sized(json!({ "unknown": &large[400..] })).unwrap();
        let words: Vec<_> = (0..200_000).map(|_| "a").collect();
        assert!(
            sized(json!({ "init": { "cmd": words } }))
                .unwrap_err()
                .contains("arguments and environment")
        );
        let files: Vec<_> = (0..70_000)
            .map(|n| json!({ "guest_path": format!("/{n}"), "raw_value": "" }))
            .collect();
        assert!(sized(json!({ "files": files })).unwrap_err().contains("config.files holds"));
    }
}
