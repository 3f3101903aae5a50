//! Mounts: volumes of a machine, and where it sees them.

use super::is_given;
use crate::{
    ApiError, VolumeId,
    config::Mount,
    volume::{MAX_MOUNTS, MAX_VOLUME_GIB},
};

/// Where init has its own mounts, on which it depends.
const OF_INIT: [&str; 4] = ["/proc", "/sys", "/dev", "/.fly"];
/// Longest path, bytes.
const MAX_PATH: usize = 1024;

pub(super) fn check(mounts: &[Mount]) -> Result<(), ApiError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(ApiError::invalid(format!(
            "invalid config.mounts, cannot exceed {MAX_MOUNTS}"
        )));
    }
    for (index, mount) in mounts.iter().enumerate() {
        let field = |name: &str| format!("config.mounts[{index}].{name}");
        check_volume(&field, mount)?;
        let path = check_path(&field, mount)?;
        check_growth(&field, mount)?;
        for earlier in &mounts[..index] {
            let other = earlier.path.as_deref().map(parts).unwrap_or_default();
            if path.starts_with(&other) || other.starts_with(&path) {
                return Err(ApiError::invalid(format!(
                    "invalid {}, it is the path of another mount, or one is inside the other",
                    field("path")
                )));
            }
            let volume = mount.wanted_id();
            if volume.is_some() && volume == earlier.wanted_id() {
                return Err(ApiError::invalid(format!(
                    "invalid {}, the volume is mounted twice",
                    field("volume")
                )));
            }
        }
    }
    Ok(())
}

impl Mount {
    /// The volume that is asked for by its id.
    pub fn wanted_id(&self) -> Option<VolumeId> {
        self.volume.as_deref()?.parse().ok()
    }

    /// The name that is asked for, where no id is.
    pub fn wanted_name(&self) -> Option<&str> {
        let given = |text: &&str| !text.is_empty();
        let named = self.volume.as_deref().filter(given).or(self.name.as_deref().filter(given));
        named.filter(|_| self.wanted_id().is_none())
    }
}

fn check_volume(field: &impl Fn(&str) -> String, mount: &Mount) -> Result<(), ApiError> {
    if mount.wanted_id().is_some() {
        return Ok(());
    }
    let Some(name) = mount.wanted_name() else {
        return Err(ApiError::invalid(format!(
            "invalid {}, a volume is required: give its ID or name",
            field("volume")
        )));
    };
    if name.starts_with("vol_") || super::volumes::check_name(name).is_err() {
        let shown: String = name.escape_debug().take(100).collect();
        return Err(ApiError::invalid(format!(
            "invalid {}, '{shown}' is neither the ID nor the name of a volume",
            field("volume")
        )));
    }
    Ok(())
}

/// Gives its parts.
fn check_path<'a>(
    field: &impl Fn(&str) -> String,
    mount: &'a Mount,
) -> Result<Vec<&'a str>, ApiError> {
    let invalid = |why: &str| Err(ApiError::invalid(format!("invalid {}, {why}", field("path"))));
    let path = mount.path.as_deref().unwrap_or_default();
    let found = parts(path);
    if !path.starts_with('/') || found.is_empty() {
        return invalid("must be an absolute path other than /");
    }
    if path.len() > MAX_PATH || path.chars().any(char::is_control) {
        return invalid(&format!("use at most {MAX_PATH} printable characters"));
    }
    if found.iter().any(|part| [".", ".."].contains(part)) {
        return invalid("must not contain . or ..");
    }
    if let Some(taken) = OF_INIT.iter().find(|taken| found.starts_with(&parts(taken))) {
        return invalid(&format!("{taken} belongs to the system"));
    }
    Ok(found)
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

fn check_growth(field: &impl Fn(&str) -> String, mount: &Mount) -> Result<(), ApiError> {
    let maximum = u32::from(MAX_VOLUME_GIB);
    for (name, value, maximum) in [
        ("extend_threshold_percent", mount.extend_threshold_percent, 99),
        ("add_size_gb", mount.add_size_gb, maximum),
        ("add_size_percent", mount.add_size_percent, 100),
        ("min_add_size_gb", mount.min_add_size_gb, maximum),
        ("size_gb_limit", mount.size_gb_limit, maximum),
    ] {
        if value.is_some_and(|value| value > maximum) {
            return Err(ApiError::invalid(format!(
                "invalid {}, must be between 1 and {maximum}",
                field(name)
            )));
        }
    }
    let (step, share) = (is_given(mount.add_size_gb), is_given(mount.add_size_percent));
    if step && share {
        return Err(ApiError::invalid(format!(
            "invalid {}, it excludes add_size_percent, give one",
            field("add_size_gb")
        )));
    }
    let threshold = is_given(mount.extend_threshold_percent);
    if threshold && !step && !share {
        return Err(ApiError::invalid(format!(
            "invalid {}, it needs add_size_gb or add_size_percent",
            field("extend_threshold_percent")
        )));
    }
    let without = [
        ("add_size_gb", step && !threshold),
        ("add_size_percent", share && !threshold),
        ("min_add_size_gb", is_given(mount.min_add_size_gb) && !share),
        ("size_gb_limit", is_given(mount.size_gb_limit) && !threshold),
    ];
    match without.iter().find(|(_, alone)| *alone) {
        Some(("min_add_size_gb", _)) => Err(ApiError::invalid(format!(
            "invalid {}, it needs add_size_percent",
            field("min_add_size_gb")
        ))),
        Some((name, _)) => Err(ApiError::invalid(format!(
            "invalid {}, it needs extend_threshold_percent",
            field(name)
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(mounts: Value) -> Option<String> {
        let mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        check(&mounts).err().map(|error| error.message)
    }

    #[test]
    fn mounts_that_are_fine() {
        for mounts in [
            json!([]),
            json!([{ "volume": "vol_1", "path": "/data" }]),
            json!([{ "volume": "data", "path": "/var/lib/data/" }]),
            json!([{ "volume": "", "name": "data", "path": "/devices" }]),
            json!([{ "volume": "vol_1", "path": "/a", "name": "data", "size_gb": 3,
                "encrypted": true }, { "volume": "vol_2", "path": "/ab" }]),
            json!([{ "name": "data", "path": "/a" }, { "name": "data", "path": "/b" }]),
            json!([{ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 80,
                "add_size_gb": 1, "size_gb_limit": 10 }]),
            json!([{ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 80,
                "add_size_percent": 10, "min_add_size_gb": 2, "add_size_gb": 0 }]),
        ] {
            assert_eq!(refusal(mounts.clone()), None, "{mounts}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_mount_is_named() {
        for (mount, expected) in [
            (json!({ "path": "/data" }), "config.mounts[0].volume, a volume is required"),
            (json!({ "volume": "vol_A", "path": "/data" }), "'vol_A' is neither"),
            (json!({ "volume": "my-data", "path": "/data" }), "'my-data' is neither"),
            (json!({ "volume": "vol_1" }), "must be an absolute path other than /"),
            (json!({ "volume": "vol_1", "path": "data" }), "absolute path"),
            (json!({ "volume": "vol_1", "path": "//" }), "other than /"),
            (json!({ "volume": "vol_1", "path": "/a/../b" }), "must not contain . or .."),
            (json!({ "volume": "vol_1", "path": "/a\nb" }), "printable"),
            (json!({ "volume": "vol_1", "path": "/proc" }), "/proc belongs to the system"),
            (json!({ "volume": "vol_1", "path": "//dev/shm" }), "/dev belongs to the system"),
            (json!({ "volume": "vol_1", "path": "/sys/" }), "/sys belongs to the system"),
            (
                json!({ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 100,
                    "add_size_gb": 1 }),
                "config.mounts[0].extend_threshold_percent, must be between 1 and 99",
            ),
            (
                json!({ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 80 }),
                "needs add_size_gb or add_size_percent",
            ),
            (
                json!({ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 80,
                    "add_size_gb": 1, "add_size_percent": 1 }),
                "excludes add_size_percent",
            ),
            (
                json!({ "volume": "vol_1", "path": "/a", "add_size_gb": 1 }),
                "config.mounts[0].add_size_gb, it needs extend_threshold_percent",
            ),
            (
                json!({ "volume": "vol_1", "path": "/a", "extend_threshold_percent": 80,
                    "add_size_gb": 1, "min_add_size_gb": 1 }),
                "min_add_size_gb, it needs add_size_percent",
            ),
            (
                json!({ "volume": "vol_1", "path": "/a", "size_gb_limit": 501 }),
                "size_gb_limit, must be between 1 and 500",
            ),
        ] {
            let text = refusal(json!([mount])).unwrap_or_default();
            assert!(text.contains(expected), "{mount} gave {text}");
        }
        let two = |one: Value, other: Value| refusal(json!([one, other])).unwrap_or_default();
        let one = json!({ "volume": "vol_1", "path": "/a" });
        assert!(two(one.clone(), json!({ "volume": "vol_2", "path": "/a/" })).contains("[1].path"));
        assert!(
            two(one.clone(), json!({ "volume": "vol_2", "path": "/a/b" }))
                .contains("one is inside the other")
        );
        assert!(
            two(one.clone(), json!({ "volume": "vol_1", "path": "/b" })).contains("mounted twice")
        );
        assert!(
            refusal(json!([one, one, one])).unwrap().contains("cannot exceed 2"),
            "there are too many"
        );
    }
}
