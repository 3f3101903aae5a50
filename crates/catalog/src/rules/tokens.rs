//! Tokens: only their SHA-256 is stored.

#[cfg(feature = "test-tokens")]
use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
#[cfg(feature = "test-tokens")]
use parking_lot::Mutex;
use rand::Rng as _;
use sha2::{Digest as _, Sha256};

use super::Catalog;
use crate::{CatalogError, PERSONAL, Result, TokenRecord, store::TokenRow};

const ROOT: &str = "root";

/// Tokens by their texts.
#[cfg(feature = "test-tokens")]
pub(super) type TestTokens = Arc<Mutex<HashMap<String, TokenRecord>>>;

impl Catalog {
    /// The token this text is, if it is one of ours.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn authenticate(&self, token: &str) -> Result<Option<TokenRecord>> {
        #[cfg(feature = "test-tokens")]
        if let Some(accepted) = self.test_tokens.lock().get(token) {
            return Ok(Some(accepted.clone()));
        }
        Ok(self.store.token(&hash(token)).await?)
    }

    /// Takes this text for a token, as long as a copy of this catalog is there. Stores nothing.
    #[cfg(feature = "test-tokens")]
    pub fn accept_token(&self, text: &str, token: TokenRecord) {
        self.test_tokens.lock().insert(text.to_owned(), token);
    }

    /// Makes the root token unless there is one. Gives its text, which is stored nowhere, the one
    /// time it is made.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn ensure_root_token(&self) -> Result<Option<String>> {
        let text = random_token();
        let made = self.store.insert_token(self.root_token(&text).await?).await?;
        Ok(made.then_some(text))
    }

    /// Replaces the root token, for when its text was lost; the old one is refused from now on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn replace_root_token(&self) -> Result<String> {
        let text = random_token();
        self.store.replace_token(self.root_token(&text).await?).await?;
        Ok(text)
    }

    async fn root_token(&self, text: &str) -> Result<TokenRow> {
        let organization = self.store.organization(PERSONAL).await?;
        let organization =
            organization.ok_or_else(|| CatalogError::OrganizationNotFound(PERSONAL.to_owned()))?;
        Ok(TokenRow {
            name: ROOT.to_owned(),
            hash: hash(text),
            organization: organization.internal_numeric_id,
            created_ms: self.now(),
        })
    }
}

fn random_token() -> String {
    format!("caddis_{}", URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>()))
}

/// A token of 256 random bits needs no slow hash: there is nothing to guess.
fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
