//! Requests about volumes.

use std::ops::RangeInclusive;

use crate::{
    ApiError,
    volume::{
        CreateVolumeRequest, DEFAULT_VOLUME_GIB, ExtendVolumeRequest, Filesystem, MAX_VOLUME_GIB,
        SNAPSHOT_RETENTION, UpdateVolumeRequest, Volume,
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
        let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        if given(&self.snapshot_id) {
            return Err(ApiError::invalid(
                "invalid snapshot_id, this server takes no snapshots of volumes yet",
            ));
        }
        Ok(())
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

    /// Its size, GiB: that of its source unless a larger one is asked for.
    ///
    /// # Errors
    /// 400 for one that is smaller than its source.
    pub fn size_of(&self, source: Option<&Volume>) -> Result<u32, ApiError> {
        let least = source.map_or(DEFAULT_VOLUME_GIB, |source| source.size_gb);
        let size = self.size_gb.filter(|size| *size > 0).unwrap_or(least);
        if source.is_some() && size < least {
            return Err(ApiError::invalid(format!(
                "invalid size_gb, the source has {least} GB, a copy can't be smaller"
            )));
        }
        Ok(size)
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
            (json!({ "name": "a", "snapshot_id": "vs_1" }), "takes no snapshots of volumes yet"),
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
}
