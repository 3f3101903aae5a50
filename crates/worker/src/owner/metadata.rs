//! The user's own words about a machine. Changing them makes no new version and restarts nothing.

use std::collections::BTreeMap;

use caddis_api::{ApiError, RawConfig, VersionId};
use serde_json::json;

use super::{Owner, Transaction, kept};
use crate::store::Durability;

/// Bytes of all keys and values together.
const MOST: usize = caddis_api::validate::MAX_METADATA_BYTES;

impl Owner {
    pub(super) async fn set_metadata(
        &mut self,
        changes: BTreeMap<String, Option<String>>,
        expected: Option<VersionId>,
    ) -> Result<(), ApiError> {
        if let Some(expected) = expected.filter(|expected| *expected != self.row.version) {
            let current = &self.row.version;
            return Err(ApiError::precondition(format!(
                "machine version mismatch, {expected} is not the current {current}"
            )));
        }
        let mut draft = Transaction::new(self.row.clone(), self.shared.clock.unix_now());
        draft.merge_metadata(&changes);
        if draft.row == self.row {
            return Ok(());
        }
        let config = caddis_api::validate::read(&draft.row.config)?;
        let size: usize =
            config.metadata.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
        if size > MOST {
            return Err(ApiError::invalid(format!(
                "invalid metadata, cannot exceed {MOST} bytes in total"
            )));
        }
        self.try_change(Durability::Synced, |draft| draft.merge_metadata(&changes)).await?;
        self.config = kept(config);
        self.shared.policies.knows(&self.row, &self.config);
        if let Err(error) = self.shared.policies.apply(&self.shared).await {
            // They are applied again before the machine starts.
            let error = error.message;
            tracing::error!(machine = %self.row.id, error, "can't apply network policies");
        }
        Ok(())
    }
}

impl Transaction {
    /// Merges into the machine's metadata, and into those of the version that an update may go back
    /// to.
    fn merge_metadata(&mut self, changes: &BTreeMap<String, Option<String>>) {
        merge(&mut self.row.config, changes);
        if let Some(replaced) = &mut self.row.replaced {
            merge(&mut replaced.config, changes);
        }
    }
}

fn merge(config: &mut RawConfig, changes: &BTreeMap<String, Option<String>>) {
    let mut fields = config.fields();
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    for (key, value) in changes {
        match value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => drop(metadata.insert(key.clone(), json!(value))),
            None => drop(metadata.remove(key)),
        }
    }
    *config = fields.into();
}
