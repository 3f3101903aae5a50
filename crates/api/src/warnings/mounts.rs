//! Settings of mounts that do nothing because of what is missing beside them.

use crate::config::{MachineConfig, Mount};

/// A line for each.
pub(super) fn warnings(config: &MachineConfig) -> Vec<String> {
    let mounts = config.mounts.iter().flatten().enumerate();
    let endless = mounts.filter(|(_, mount)| grows_without_limit(mount));
    let line = |(index, _)| {
        format!(
            "config.mounts[{index}].extend_threshold_percent has no effect without size_gb_limit"
        )
    };
    endless.map(line).collect()
}

/// Zero counts as not given.
fn grows_without_limit(mount: &Mount) -> bool {
    mount.extend_threshold_percent.is_some_and(|percent| percent > 0)
        && mount.size_gb_limit.is_none_or(|limit| limit == 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{RawConfig, warnings::warnings};

    fn told(mounts: Value) -> Vec<String> {
        let raw: RawConfig =
            serde_json::from_value(json!({ "image": "a", "mounts": mounts })).unwrap();
        warnings(&raw)
    }

    #[test]
    fn growth_without_a_limit_is_warned_of() {
        let mount = |limit: Value| {
            json!({ "volume": "data", "path": "/a", "extend_threshold_percent": 80,
                "add_size_gb": 1, "size_gb_limit": limit })
        };
        let plain = json!({ "volume": "data", "path": "/b" });
        assert_eq!(
            told(json!([plain, mount(Value::Null)])),
            ["config.mounts[1].extend_threshold_percent has no effect without size_gb_limit"]
        );
        assert_eq!(told(json!([mount(json!(0))])).len(), 1);
        assert_eq!(told(json!([plain, mount(json!(10))])), Vec::<String>::new());
    }
}
