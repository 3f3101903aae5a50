//! What connections of machines to the outside come from. Gateways tell it, of all machines of the
//! worker at once; the network keeps it, also over a restart, by the private addresses of machines.
//! So an address that becomes another machine's has nothing left of the one before.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use caddis_api::{ApiError, MachineId};
use caddis_bus::message::{EgressSource, MachineEgress, WorkerReply, WorkerResult};
use caddis_network::{Assignment, Assignments, MachineAddresses, Refused};
use parking_lot::Mutex;
use serde_json::json;

use crate::{engine::Shared, owner::Message, row::MachineRow};

/// At most one event of each machine in so long.
const BACKOFF: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Debug, Default)]
pub struct Egress {
    /// Held while it is changed; none until a gateway has told it.
    told: tokio::sync::Mutex<Option<Told>>,
    machines: Mutex<HashMap<MachineId, MachineAddresses>>,
}

#[derive(Debug)]
struct Told {
    revision: u64,
    machines: HashMap<MachineId, Vec<EgressSource>>,
}

impl Egress {
    /// There is such a machine.
    pub fn knows(&self, machine: &MachineId, addresses: &MachineAddresses) {
        self.machines.lock().insert(machine.clone(), addresses.clone());
    }

    /// Takes what a gateway tells, unless it is older than what there is.
    pub async fn set(
        &self,
        shared: &Shared,
        revision: u64,
        machines: Vec<MachineEgress>,
    ) -> WorkerResult {
        let mut told = self.told.lock().await;
        if let Some(known) = told.as_ref().filter(|known| known.revision > revision) {
            return Ok(WorkerReply::Egress { revision: known.revision });
        }
        let machines = machines.into_iter().map(|one| (one.machine, one.sources)).collect();
        let new = Told { revision, machines };
        shared.network.set_egress(self.assignments(&new)).await?;
        *told = Some(new);
        Ok(WorkerReply::Egress { revision })
    }

    /// There is about to be such a machine: it has its egress addresses before it runs.
    pub async fn admit(
        &self,
        shared: &Shared,
        machine: &MachineId,
        addresses: &MachineAddresses,
    ) -> Result<(), ApiError> {
        let told = self.told.lock().await;
        self.knows(machine, addresses);
        let admitted = match &*told {
            Some(told) => shared.network.set_egress(self.assignments(told)).await,
            None => shared.network.clear_egress(addresses).await,
        };
        admitted.inspect_err(|_| self.is_not_made(machine))
    }

    /// It came to nothing.
    pub fn is_not_made(&self, machine: &MachineId) {
        self.machines.lock().remove(machine);
    }

    /// A machine is being destroyed.
    pub async fn forget(&self, shared: &Shared, row: &MachineRow) -> Result<(), ApiError> {
        let _told = self.told.lock().await;
        self.machines.lock().remove(&row.id);
        shared.network.clear_egress(&row.addresses).await
    }

    fn assignments(&self, told: &Told) -> Assignments {
        let machines = self.machines.lock();
        let mut all = Assignments::new();
        for (machine, sources) in &told.machines {
            let Some(addresses) = machines.get(machine) else { continue };
            all.extend(sources.iter().map(|EgressSource { address, ports }| Assignment {
                machine: match address {
                    IpAddr::V4(_) => addresses.ipv4.into(),
                    IpAddr::V6(_) => addresses.ipv6.into(),
                },
                address: *address,
                ports: *ports,
            }));
        }
        all
    }

    /// Refused connections by machine.
    fn by_machine(&self, refused: &Refused) -> BTreeMap<MachineId, u64> {
        let machines = self.machines.lock();
        let of = |address: IpAddr| refused.get(&address).copied().unwrap_or_default();
        let counts = machines.iter().map(|(machine, addresses)| {
            (machine.clone(), of(addresses.ipv4.into()) + of(addresses.ipv6.into()))
        });
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// Tells machines of connections that found no free port; never ends.
pub async fn note(shared: Arc<Shared>) {
    let Some(mut refused) = shared.network.refused() else {
        return std::future::pending().await;
    };
    let mut known = BTreeMap::new();
    while refused.changed().await.is_ok() {
        let counts = shared.egress.by_machine(&refused.borrow_and_update());
        let mut is_told = false;
        for (machine, count) in &counts {
            let before = known.get(machine).copied().unwrap_or_default();
            let (Some(owner), true) = (shared.owner(machine), *count > before) else { continue };
            let more = count - before;
            tracing::warn!(%machine, connections = more, "refused connections of a machine: all \
                ports of its egress address were in use");
            let message = format!(
                "{more} connections refused: the machine's ports of its egress address were all \
                 in use for their destination; keep connections open, or give the machine an \
                 address of its own"
            );
            let details = json!({
                "refused": more, "refused_in_all": count, "message": message, "level": "warning"
            });
            // One that has just ended hears of nothing.
            let _ = owner.send(Message::Note { kind: "network", details }).await;
            is_told = true;
        }
        known = counts;
        if is_told {
            shared.clock.sleep(BACKOFF).await;
        }
    }
    // The network ends with the server.
    std::future::pending().await
}
