//! Rows of tokens, and their copy in memory, so that authenticating a request costs no visit to the
//! thread. The file belongs to one process, so the copy is never out of date.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use rusqlite::{Connection, Result, TransactionBehavior, params};

use crate::{TokenRecord, TokenScope, store::TokenRow};

/// All tokens.
#[derive(Clone)]
pub(super) struct Tokens(Arc<RwLock<HashMap<[u8; 32], TokenRecord>>>);

impl Tokens {
    pub(super) fn read(connection: &Connection) -> Result<Self> {
        Ok(Self(Arc::new(RwLock::new(all(connection)?))))
    }

    pub(super) fn get(&self, hash: &[u8; 32]) -> Option<TokenRecord> {
        self.0.read().get(hash).cloned()
    }

    /// Inserts a token, in place of the one of its name if `replace`. False where that is there.
    pub(super) fn insert(
        &self,
        connection: &mut Connection,
        row: &TokenRow,
        replace: bool,
    ) -> Result<bool> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if replace {
            transaction.execute("DELETE FROM tokens WHERE name = ?1", [&row.name])?;
        }
        let inserted = transaction.execute(
            "INSERT INTO tokens (name, hash, organization, created_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO NOTHING",
            params![row.name, row.hash, row.organization, row.created_ms.as_u64()],
        )?;
        transaction.commit()?;
        *self.0.write() = all(connection)?;
        Ok(inserted == 1)
    }
}

fn all(connection: &Connection) -> Result<HashMap<[u8; 32], TokenRecord>> {
    connection
        .prepare_cached(
            "SELECT hash, tokens.name, slug FROM tokens JOIN organizations o ON o.number = \
             tokens.organization",
        )?
        .query_map([], |row| {
            let (name, organization) = (row.get(1)?, row.get(2)?);
            Ok((row.get(0)?, TokenRecord { name, organization, scope: TokenScope::All }))
        })?
        .collect()
}
