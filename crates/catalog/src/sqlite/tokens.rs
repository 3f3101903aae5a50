//! Tokens: only their SHA-256 is stored.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng as _;
use rusqlite::{Connection, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};

use super::{Tokens, schema::now_ms};
use crate::{PERSONAL, TokenRecord, TokenScope};

const ROOT: &str = "root";

/// A token of 256 random bits needs no slow hash: there is nothing to guess.
pub(super) fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Tokens> {
    connection
        .prepare_cached(
            "SELECT hash, tokens.name, slug FROM tokens JOIN organizations o ON o.number = tokens.organization",
        )?
        .query_map([], |row| {
            let (name, organization) = (row.get(1)?, row.get(2)?);
            Ok((row.get(0)?, TokenRecord { name, organization, scope: TokenScope::All }))
        })?
        .collect()
}

/// Makes the root token unless there is one and `replace` is not set.
pub(super) fn set_root(connection: &mut Connection, replace: bool) -> rusqlite::Result<Option<String>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if replace {
        transaction.execute("DELETE FROM tokens WHERE name = ?1", [ROOT])?;
    }
    let text = format!("caddis_{}", URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>()));
    let made = transaction.execute(
        "INSERT INTO tokens (name, hash, organization, created_ms)
         SELECT ?1, ?2, number, ?3 FROM organizations WHERE slug = ?4 ON CONFLICT (name) DO NOTHING",
        params![ROOT, hash(&text), now_ms(), PERSONAL],
    )?;
    transaction.commit()?;
    Ok((made == 1).then_some(text))
}
