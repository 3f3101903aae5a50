//! Apps: names are unique until an app is gone, and it goes when its last machine has.

use caddis_api::{AppName, NetworkName, app::Organization, names};
use rand::Rng as _;

use super::Catalog;
use crate::{
    AppPage, AppQuery, AppRecord, AppState, CatalogError, NewApp, Result,
    store::{AppConflict, AppRow},
};

/// Network of apps that name none.
pub(super) const DEFAULT_NETWORK: &str = "default";

impl Catalog {
    /// Makes an app and, when it is the first of it, its network. With an idempotency key seen
    /// before it gives the app of the first call.
    ///
    /// # Errors
    /// [`CatalogError::AppNameTaken`], [`CatalogError::OrganizationNotFound`],
    /// [`CatalogError::IdempotencyMismatch`] when the key came with another name before.
    pub async fn create_app(&self, new: NewApp) -> Result<AppRecord> {
        let organization = self
            .store
            .organization(&new.organization)
            .await?
            .ok_or_else(|| CatalogError::OrganizationNotFound(new.organization.clone()))?;
        loop {
            let made_up = || AppName::from_trusted(names::generate());
            let name = new.name.clone().unwrap_or_else(made_up);
            let taken = self.store.app(&name).await?.is_some();
            // After the name: who has it may be the app of this very key.
            if let Some(earlier) = self.app_of_key(&organization, &new).await? {
                return Ok(earlier);
            }
            if !taken {
                match self.insert_app(&organization, &name, &new).await? {
                    Ok(app) => return Ok(app),
                    Err(AppConflict::Key | AppConflict::Id) => continue,
                    Err(AppConflict::Name) => {}
                }
            }
            if new.name.is_some() {
                return Err(CatalogError::AppNameTaken);
            }
        }
    }

    async fn app_of_key(
        &self,
        organization: &Organization,
        new: &NewApp,
    ) -> Result<Option<AppRecord>> {
        let Some(key) = &new.idempotency_key else { return Ok(None) };
        let earlier = self.store.app_of_key(organization.internal_numeric_id, key).await?;
        match (&earlier, &new.name) {
            (Some(app), Some(wanted)) if app.name != *wanted => {
                Err(CatalogError::IdempotencyMismatch)
            }
            _ => Ok(earlier),
        }
    }

    async fn insert_app(
        &self,
        organization: &Organization,
        name: &AppName,
        new: &NewApp,
    ) -> Result<std::result::Result<AppRecord, AppConflict>> {
        let default_network = || NetworkName::from_trusted(DEFAULT_NETWORK);
        let network_name = new.network.clone().unwrap_or_else(default_network);
        let network = self.network(organization.internal_numeric_id, &network_name).await?;
        let row = AppRow {
            id: random_id(),
            name: name.clone(),
            organization: organization.internal_numeric_id,
            network: network.number,
            key: new.idempotency_key.clone(),
            created_ms: self.now(),
        };
        let inserted = self.store.insert_app(row.clone()).await?;
        Ok(inserted.map(|number| AppRecord {
            id: row.id,
            number,
            name: row.name,
            organization: organization.clone(),
            network: network_name,
            network_prefix: network.prefix,
            created_ms: row.created_ms,
            state: AppState::Active,
        }))
    }

    /// The app of this name, if there is one; also while it is being deleted.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn app(&self, name: &str) -> Result<Option<AppRecord>> {
        Ok(self.store.app(name).await?)
    }

    /// Apps in the order of their numbers.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn apps(&self, query: AppQuery) -> Result<AppPage> {
        // One more than wanted tells whether there are more.
        let one_more =
            AppQuery { limit: query.limit.map(|limit| limit.saturating_add(1)), ..query.clone() };
        let mut apps = self.store.apps(&one_more).await?;
        let more = query.limit.is_some_and(|limit| apps.len() > limit);
        apps.truncate(query.limit.unwrap_or(usize::MAX));
        Ok(AppPage { apps, total: self.store.count_apps(&query).await?, more })
    }

    /// Marks an app for deletion: no machine can be placed in it any more. Doing it again changes
    /// nothing.
    ///
    /// # Errors
    /// [`CatalogError::AppNotFound`].
    pub async fn begin_app_deletion(&self, name: &str) -> Result<AppRecord> {
        loop {
            let app = self
                .store
                .app(name)
                .await?
                .ok_or_else(|| CatalogError::AppNotFound(name.to_owned()))?;
            // By its number: the name may have gone to another app since.
            if app.state == AppState::Deleting
                || self.store.mark_app_deleting(app.number, self.now()).await?
            {
                return Ok(AppRecord { state: AppState::Deleting, ..app });
            }
        }
    }

    /// Ends the deletion of an app once none of its machines is left, which frees its name. Says
    /// whether the app is gone; an app that is not marked stays.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn finish_app_deletion(&self, name: &str) -> Result<bool> {
        let Some(app) = self.store.app(name).await? else { return Ok(true) };
        if app.state == AppState::Active {
            return Ok(false);
        }
        if self.store.delete_app(app.number, self.now()).await? {
            self.settle_all_egress().await?;
            return Ok(true);
        }
        // A machine is left, or somebody else has just deleted it.
        Ok(self.store.app(name).await?.is_none())
    }

    /// Apps whose deletion has begun and not ended.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn apps_in_deletion(&self) -> Result<Vec<AppRecord>> {
        Ok(self.store.apps_in_deletion().await?)
    }
}

fn random_id() -> String {
    const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..16).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}
