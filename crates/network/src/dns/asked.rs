//! How often machines ask the name server. One that may send nothing out can still ask for names,
//! and say something with them to whoever answers for a domain: so what it asks is counted.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use parking_lot::Mutex;

/// Queries of one machine, since its tap was connected or the server has begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsQueries {
    /// All.
    pub asked: u64,
    /// Those of them that were for other name servers to answer.
    pub forwarded: u64,
}

/// Those of all machines that have a tap, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<HashMap<Ipv6Addr, DnsQueries>>);

impl Asked {
    /// Begins to count those of a machine, unless it does already.
    pub(crate) fn begin(&self, machine: Ipv6Addr) {
        self.0.lock().entry(machine).or_default();
    }

    pub(crate) fn end(&self, machine: Ipv6Addr) {
        self.0.lock().remove(&machine);
    }

    /// Those of peers are not counted, so that who is gone leaves nothing.
    pub(super) fn count(&self, asker: IpAddr, is_forwarded: bool) {
        let IpAddr::V6(asker) = asker else { return };
        if let Some(queries) = self.0.lock().get_mut(&asker) {
            queries.asked += 1;
            queries.forwarded += u64::from(is_forwarded);
        }
    }

    pub(crate) fn of(&self, machine: Ipv6Addr) -> DnsQueries {
        self.0.lock().get(&machine).copied().unwrap_or_default()
    }
}
