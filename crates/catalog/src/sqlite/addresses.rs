//! Rows of the addresses of apps, and who is told when they change.

use std::{net::IpAddr, sync::Arc};

use caddis_api::{AppName, NetworkName, UnixMillis};
use rusqlite::{
    Connection, Result, Row, TransactionBehavior,
    types::{FromSqlError, Type},
};
use tokio::sync::watch;

use crate::{
    Address, AddressKind, PrivateNetwork,
    store::{AddressConflict, AddressRow},
};

/// Tells of changes. The file belongs to one process, so nobody else makes any.
#[derive(Clone)]
pub(super) struct Changes(Arc<watch::Sender<u64>>);

impl Changes {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Called on the thread of the connection after a commit: the caller may have stopped waiting.
    pub(super) fn raise(&self) {
        self.0.send_modify(|number| *number += 1);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

pub(super) fn list(connection: &Connection, app: Option<i32>) -> Result<Vec<Address>> {
    connection
        .prepare_cached(
            "SELECT d.ip, d.kind, a.name, o.slug, n.name, d.region, d.service_name, d.created_ms
             FROM addresses d JOIN apps a ON a.number = d.app
             LEFT JOIN networks n ON n.number = d.network
             LEFT JOIN organizations o ON o.number = n.organization
             WHERE ?1 IS NULL OR d.app = ?1 ORDER BY d.app, d.number",
        )?
        .query_map([app], read)?
        .collect()
}

fn read(row: &Row<'_>) -> Result<Address> {
    let (ip, kind): (String, String) = (row.get(0)?, row.get(1)?);
    let organization: Option<String> = row.get(3)?;
    let network: Option<String> = row.get(4)?;
    let kind = AddressKind::ALL.into_iter().find(|known| known.as_str() == kind);
    Ok(Address {
        ip: ip.parse().map_err(|e| unreadable(0, Box::new(e)))?,
        kind: kind.ok_or_else(|| unreadable(1, Box::new(FromSqlError::InvalidType)))?,
        app: AppName::from_trusted(row.get::<_, String>(2)?),
        network: organization.zip(network).map(|(organization, name)| PrivateNetwork {
            organization,
            name: NetworkName::from_trusted(name),
        }),
        region: row.get(5)?,
        service_name: row.get(6)?,
        created_at: UnixMillis::new(row.get(7)?),
    })
}

fn unreadable(column: usize, reason: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, reason)
}

pub(super) fn insert(
    connection: &mut Connection,
    row: &AddressRow,
) -> Result<std::result::Result<(), AddressConflict>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let app_takes_addresses = transaction
        .prepare_cached(
            "SELECT 1 FROM apps WHERE number = ?1 AND deleting_ms IS NULL AND deleted_ms IS NULL",
        )?
        .exists([row.app])?;
    if !app_takes_addresses {
        return Ok(Err(AddressConflict::App));
    }
    let kind = row.kind.as_str();
    if let Some(known) = &row.only_beside {
        let known: Vec<_> = known.iter().map(IpAddr::to_string).collect();
        let alike = transaction
            .prepare_cached("SELECT ip FROM addresses WHERE app = ?1 AND kind = ?2")?
            .query_map((row.app, kind), |found| found.get::<_, String>(0))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        if alike.iter().any(|ip| !known.contains(ip)) {
            return Ok(Err(AddressConflict::Kind));
        }
    }
    let inserted = transaction
        .prepare_cached(
            "INSERT INTO addresses (app, ip, kind, network, region, service_name, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute((
            row.app,
            row.ip.to_string(),
            kind,
            row.network,
            &row.region,
            &row.service_name,
            row.created_at.as_u64(),
        ))?;
    transaction.commit()?;
    Ok(if inserted == 1 { Ok(()) } else { Err(AddressConflict::Address) })
}

pub(super) fn delete(connection: &Connection, app: i32, ip: IpAddr) -> Result<bool> {
    let deleted = connection
        .prepare_cached("DELETE FROM addresses WHERE app = ?1 AND ip = ?2")?
        .execute((app, ip.to_string()))?;
    Ok(deleted == 1)
}
