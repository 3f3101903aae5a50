//! Requests about volumes.

use std::ops::RangeInclusive;

use crate::{
    ApiError, SnapshotId,
    volume::{
        CreateVolumeRequest, DEFAULT_VOLUME_GIB, ExtendVolumeRequest, Filesystem, MAX_VOLUME_GIB,
        SNAPSHOT_RETENTION, UpdateVolumeRequest,
    },
};

/// Longest name of a volume, characters.
pub const MAX_VOLUME_NAME: usize = 30;

/// Checks the form of a volume's name.
///
/// # Errors
/// 400 saying what it may consist of.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > MAX_VOLUME_NAME || !name.bytes().all(fits) {
        return Err(ApiError::invalid(format!(
            "invalid name, use 1 to {MAX_VOLUME_NAME} letters, digits and underscores"
        )));
    }
    Ok(())
}

fn check_size(size: u32) -> Result<(), ApiError> {
    if (1..=u32::from(MAX_VOLUME_GIB)).contains(&size) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("invalid size_gb, must be between 1 and {MAX_VOLUME_GIB}")))
}

fn is_given(text: &str) -> bool {
    !text.is_empty()
}

fn check_retention(days: Option<u32>) -> Result<(), ApiError> {
    let known: RangeInclusive<u32> = SNAPSHOT_RETENTION;
    if days.is_none_or(|days| known.contains(&days)) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "invalid snapshot_retention, must be between {} and {} days",
        known.start(),
        known.end()
    )))
}

impl CreateVolumeRequest {
    /// Checks what can be checked without its source.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn check(&self) -> Result<(), ApiError> {
        check_name(&self.name)?;
        self.size_gb.filter(|size| *size > 0).map_or(Ok(()), check_size)?;
        check_retention(self.snapshot_retention.filter(|days| *days > 0))?;
        self.filesystem()?;
        if self.snapshot()?.is_some() && self.source_volume_id.as_deref().is_some_and(is_given) {
            return Err(ApiError::invalid(
                "invalid snapshot_id, it excludes source_volume_id, give one",
            ));
        }
        Ok(())
    }

    /// The snapshot to make it from, if any.
    ///
    /// # Errors
    /// 400 for what is no id of a snapshot.
    pub fn snapshot(&self) -> Result<Option<SnapshotId>, ApiError> {
        let Some(text) = self.snapshot_id.as_deref().filter(|text| is_given(text)) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let shown: String = text.escape_debug().take(100).collect();
            ApiError::invalid(format!("invalid snapshot_id, '{shown}' is no ID of a snapshot"))
        })
    }

    /// What is to be on it, where that is said.
    ///
    /// # Errors
    /// 400 naming what there is.
    pub fn filesystem(&self) -> Result<Option<Filesystem>, ApiError> {
        match self.fstype.as_deref() {
            None | Some("") => Ok(None),
            Some("ext4") => Ok(Some(Filesystem::Ext4)),
            Some("raw") => Ok(Some(Filesystem::Raw)),
            Some(other) => {
                let shown: String = other.escape_debug().take(100).collect();
                Err(ApiError::invalid(format!("invalid fstype '{shown}', use ext4 or raw")))
            }
        }
    }

    /// Its size, GiB: that of what it is made from, of which a word and the size are given, unless
    /// a larger one is asked for.
    ///
    /// # Errors
    /// 400 for one that is smaller than what it is made from.
    pub fn size_of(&self, source: Option<(&str, u32)>) -> Result<u32, ApiError> {
        let asked = self.size_gb.filter(|size| *size > 0);
        let Some((what, least)) = source else { return Ok(asked.unwrap_or(DEFAULT_VOLUME_GIB)) };
        match asked {
            Some(size) if size < least => Err(ApiError::invalid(format!(
                "invalid size_gb {size}, {what} has {least} GB, the new one can't be smaller"
            ))),
            asked => Ok(asked.unwrap_or(least)),
        }
    }
}

impl UpdateVolumeRequest {
    /// Checks it.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn check(&self) -> Result<(), ApiError> {
        check_retention(self.snapshot_retention)
    }
}

impl ExtendVolumeRequest {
    /// Checks it against what is known of the volume.
    ///
    /// # Errors
    /// 400 for a size that there is not, or that is not larger.
    pub fn check(&self, current: u32) -> Result<(), ApiError> {
        check_size(self.size_gb)?;
        if self.size_gb <= current {
            return Err(ApiError::invalid(format!(
                "invalid size_gb, the volume has {current} GB already, it can only be made larger"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(value: Value) -> CreateVolumeRequest {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_field_may_be_null() {
        let sent = request(json!({
            "name": "data", "region": null, "size_gb": null, "encrypted": null,
            "require_unique_zone": null, "unique_zone_app_wide": null, "snapshot_retention": null,
            "auto_backup_enabled": null, "fstype": null, "snapshot_id": null,
            "source_volume_id": null, "compute": null, "compute_image": null, "machines_only": null
        }));
        sent.check().unwrap();
        assert_eq!((sent.size_of(None).unwrap(), sent.filesystem().unwrap()), (3, None));
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        let long = "a".repeat(31);
        for (sent, expected) in [
            (json!({}), "invalid name, use 1 to 30 letters, digits and underscores"),
            (json!({ "name": null }), "invalid name"),
            (json!({ "name": "my-data" }), "invalid name"),
            (json!({ "name": long }), "invalid name"),
            (json!({ "name": "é" }), "invalid name"),
            (json!({ "name": "a", "size_gb": 501 }), "invalid size_gb, must be between 1 and 500"),
            (json!({ "name": "a", "snapshot_retention": 61 }), "between 1 and 60 days"),
            (json!({ "name": "a", "fstype": "xfs" }), "invalid fstype 'xfs', use ext4 or raw"),
            (json!({ "name": "a", "snapshot_id": "vs_?" }), "'vs_?' is no ID of a snapshot"),
            (
                json!({ "name": "a", "snapshot_id": "vs_1", "source_volume_id": "vol_1" }),
                "excludes source_volume_id",
            ),
        ] {
            let error = request(sent.clone()).check().unwrap_err();
            assert!(error.message.contains(expected), "{sent} gave {error}");
        }
        assert!(
            UpdateVolumeRequest { snapshot_retention: Some(0), ..Default::default() }
                .check()
                .is_err()
        );
        for (size_gb, expected) in
            [(3, "has 3 GB already"), (2, "only be made larger"), (501, "500")]
        {
            let error = ExtendVolumeRequest { size_gb }.check(3).unwrap_err();
            assert!(error.message.contains(expected), "{size_gb} gave {error}");
        }
        ExtendVolumeRequest { size_gb: 500 }.check(499).unwrap();
    }

    #[test]
    fn sizes_that_are_none_are_told_as_those_that_are_too_large() {
        for size in [json!(-1), json!(1.5), json!(1_u64 << 40), json!(-9e99)] {
            let sent = json!({ "name": "a", "size_gb": size });
            let error = serde_json::from_value::<CreateVolumeRequest>(sent.clone()).unwrap_err();
            assert_eq!(error.to_string(), "must be between 1 and 500", "{size}");
            serde_json::from_value::<ExtendVolumeRequest>(sent).unwrap_err();
        }
        let default = request(json!({ "name": "a", "size_gb": 0 }));
        default.check().unwrap();
        assert_eq!(default.size_of(None).unwrap(), 3);
    }

    #[test]
    fn what_is_made_from_another_is_at_least_as_large() {
        let of = |size: Value| request(json!({ "name": "a", "size_gb": size }));
        let source = Some(("the source", 7));
        for (size, expected) in [(Value::Null, 7), (json!(0), 7), (json!(7), 7), (json!(9), 9)] {
            assert_eq!(of(size.clone()).size_of(source).unwrap(), expected, "{size}");
        }
        assert_eq!(
            of(json!(6)).size_of(source).unwrap_err().message,
            "invalid size_gb 6, the source has 7 GB, the new one can't be smaller"
        );
    }
}
