//! Network policies of apps. What one says is kept as the text that the gateway gives.

use caddis_api::PolicyId;
use tokio::sync::watch;

use super::Catalog;
use crate::{
    AppRecord, AppState, CatalogError, PolicyRecord, Result,
    store::{PolicyConflict, PolicyRow},
};

/// Most policies of an app.
pub const MAX_POLICIES: usize = 100;

impl Catalog {
    /// Makes a policy of an app, or replaces the one of this id. The second of a pair is the text
    /// that says what it does.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::AppInDeletion`],
    /// [`CatalogError::PolicyNameTaken`], [`CatalogError::TooManyPolicies`],
    /// [`CatalogError::PolicyNotFound`] when there is none to replace.
    pub async fn put_policy(
        &self,
        app: &str,
        id: Option<&PolicyId>,
        (name, document): (&str, &str),
    ) -> Result<PolicyRecord> {
        loop {
            let app = self.app_of_policies(app).await?;
            if app.state == AppState::Deleting {
                return Err(CatalogError::AppInDeletion(app.name));
            }
            let all = self.store.policies(Some(app.number)).await?;
            let former = all.iter().find(|row| Some(&row.id) == id);
            if let Some(id) = id.filter(|_| former.is_none()) {
                return Err(CatalogError::PolicyNotFound(id.clone()));
            }
            if id.is_none() && all.len() >= MAX_POLICIES {
                return Err(CatalogError::TooManyPolicies { most: MAX_POLICIES });
            }
            let now = self.now();
            let row = PolicyRow {
                id: id.cloned().unwrap_or_else(PolicyId::random),
                app: app.number,
                name: name.to_owned(),
                document: document.to_owned(),
                created_ms: former.map_or(now, |row| row.created_ms),
                updated_ms: now,
            };
            let outcome = match former {
                Some(_) => self.store.replace_policy(row.clone()).await?,
                None => self.store.insert_policy(row.clone()).await?,
            };
            match outcome {
                Ok(()) => {
                    self.policy_changes.send_modify(|number| *number += 1);
                    return Ok(record(row, &app));
                }
                Err(PolicyConflict::Name) => {
                    return Err(CatalogError::PolicyNameTaken(name.to_owned()));
                }
                // The next round tells.
                Err(PolicyConflict::App | PolicyConflict::Id) => {}
            }
        }
    }

    /// The policies of an app, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`].
    pub async fn policies_of(&self, app: &str) -> Result<Vec<PolicyRecord>> {
        let app = self.app_of_policies(app).await?;
        let rows = self.store.policies(Some(app.number)).await?;
        Ok(rows.into_iter().map(|row| record(row, &app)).collect())
    }

    /// All policies, by app.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn policies(&self) -> Result<Vec<PolicyRecord>> {
        let rows = self.store.policies(None).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // Those of an app that has just been deleted are gone with it.
        let apps = self.store.apps(&crate::AppQuery::default()).await?;
        let of = |row: PolicyRow| {
            let app = apps.iter().find(|app| app.number == row.app)?;
            Some(record(row, app))
        };
        Ok(rows.into_iter().filter_map(of).collect())
    }

    /// Deletes a policy of an app.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`], [`CatalogError::PolicyNotFound`].
    pub async fn delete_policy(&self, app: &str, id: &PolicyId) -> Result<()> {
        let app = self.app_of_policies(app).await?;
        if !self.store.delete_policy(app.number, id).await? {
            return Err(CatalogError::PolicyNotFound(id.clone()));
        }
        self.policy_changes.send_modify(|number| *number += 1);
        Ok(())
    }

    /// A number that rises after each change of policies that a copy of this catalog has made.
    pub fn policies_changed(&self) -> watch::Receiver<u64> {
        self.policy_changes.subscribe()
    }

    /// The /48 of a network of an organization, by its number; `None` when it has none of the name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn network_prefix(&self, organization: i32, name: &str) -> Result<Option<String>> {
        Ok(self.store.network(organization, name).await?.map(|network| network.prefix))
    }

    async fn app_of_policies(&self, app: &str) -> Result<AppRecord> {
        let found = self.store.app(app).await?;
        found.ok_or_else(|| CatalogError::AppNotFound(app.to_owned()))
    }
}

fn record(row: PolicyRow, app: &AppRecord) -> PolicyRecord {
    PolicyRecord {
        id: row.id,
        app: app.name.clone(),
        organization: app.organization.clone(),
        name: row.name,
        document: row.document,
        created_at: row.created_ms,
        updated_at: row.updated_ms,
    }
}
