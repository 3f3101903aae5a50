//! What of a configuration is stored and given back, and does nothing yet.

use serde_json::Value;

use crate::{RawConfig, fields};

const NO_PROXY: &str = "there is no proxy yet";
const NO_SECRETS: &str = "there are no secrets yet";
const ONE_HOST: &str = "it needs several hosts";

/// Fields that are stored only, with the reason.
const STORED: &[(&str, &str)] = &[
    ("services", NO_PROXY),
    ("statics", NO_PROXY),
    ("checks", "there are no health checks yet"),
    ("metrics", "metrics are not collected yet"),
    ("cache_drive", "there are no volumes yet"),
    ("standbys", ONE_HOST),
    ("disable_machine_autostart", NO_PROXY),
    ("spot", "there are no spot prices here"),
    ("dns.skip_registration", "machines have no DNS names yet"),
    ("dns.dns_forward_rules", "all queries go to the same name servers"),
    ("processes[].secrets", NO_SECRETS),
    ("processes[].ignore_app_secrets", NO_SECRETS),
    ("files[].secret_name", NO_SECRETS),
    ("files[].image_config", "files can't be made from an image's configuration yet"),
];

/// A line for each part that has no effect on this server, also where nobody knows it.
pub fn warnings(config: &RawConfig) -> Vec<String> {
    let config = Value::Object(config.fields());
    let given = STORED.iter().filter(|(path, _)| is_given(&config, path));
    let stored =
        given.map(|(field, why)| format!("config.{field} is stored and has no effect: {why}"));
    stored.chain(fields::unknown(&config)).collect()
}

/// Whether there is something at a path, where `[]` stands for any item of a list.
fn is_given(value: &Value, path: &str) -> bool {
    let (name, rest) = path.split_once('.').map_or((path, ""), |(name, rest)| (name, rest));
    let of_items = name.strip_suffix("[]");
    let Some(value) = value.get(of_items.unwrap_or(name)) else { return false };
    match (value, of_items) {
        (Value::Array(items), Some(_)) => items.iter().any(|item| is_given(item, rest)),
        _ if !rest.is_empty() => is_given(value, rest),
        (Value::Null | Value::Bool(false), _) => false,
        (Value::Array(items), _) => !items.is_empty(),
        (Value::Object(fields), _) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_given_and_does_nothing_is_warned_of() {
        let sent = json!({"image": "a", "env": {"A": "b"}, "services": [], "standbys": ["1"],
            "checks": {"a": {}},
            "mounts": null, "dns": {"skip_registration": false},
            "processes": [{}, {"secrets": [{"env_var": "A"}]}],
            "imgae": "b"});
        let warnings = warnings(&serde_json::from_value(sent).unwrap());
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings[0].starts_with("config.checks is stored"));
        assert!(warnings[1].ends_with("it needs several hosts"));
        assert_eq!(
            warnings[2],
            "config.processes[].secrets is stored and has no effect: there are no secrets yet"
        );
        assert!(warnings[3].ends_with("did you mean image?"));
        let skipped =
            serde_json::from_value(json!({"image": "a", "dns": {"skip_registration": true}}))
                .unwrap();
        assert!(super::warnings(&skipped)[0].ends_with("machines have no DNS names yet"));
    }
}
