//! What of a configuration is stored and given back, and does nothing yet.

use serde_json::Value;

use crate::RawConfig;

const NO_PROXY: &str = "there is no proxy yet";
const NO_VOLUMES: &str = "there are no volumes yet";
const ONE_HOST: &str = "it acts once there are several hosts";

/// Fields that are stored only, with the reason.
const STORED: &[(&str, &str)] = &[
    ("services", NO_PROXY),
    ("statics", NO_PROXY),
    ("checks", "there are no health checks yet"),
    ("metrics", "metrics are not collected yet"),
    ("mounts", NO_VOLUMES),
    ("cache_drive", NO_VOLUMES),
    ("standbys", ONE_HOST),
];

/// A line for each part that has no effect on this server.
pub fn warnings(config: &RawConfig) -> Vec<String> {
    let is_given = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let fields = config.fields();
    let given = STORED.iter().filter(|(field, _)| fields.get(*field).is_some_and(is_given));
    given.map(|(field, why)| format!("config.{field} is stored and has no effect: {why}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_given_and_does_nothing_is_warned_of() {
        let sent = json!({"image": "a", "env": {"A": "b"}, "services": [], "standbys": ["1"], "checks": {"a": {}},
            "mounts": null});
        let warnings = warnings(&serde_json::from_value(sent).unwrap());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("config.checks is stored"));
        assert!(warnings[1].ends_with("once there are several hosts"));
    }
}
