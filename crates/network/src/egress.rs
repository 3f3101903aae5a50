//! Egress addresses: what connections of machines to the outside come from, instead of an address
//! of the host. One is of a machine alone, or shared by machines of an app with a block of ports
//! for each.
//!
//! Who has which is noted in a file before it is told to the packet filter, so that the table is
//! never loaded without: a server that is just starting knows of its machines only later.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use tokio::sync::watch;

use crate::{
    MachineAddresses, Network, NetworkError, Refused, exhaustion::Counter, network::blocking, state,
};

/// What connections of one machine come from, in one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assignment {
    /// The machine's own address, as it sends.
    pub machine: IpAddr,
    /// The egress address.
    pub address: IpAddr,
    /// First and last port of its block, where other machines have the address too.
    pub ports: Option<(u16, u16)>,
}

/// All of a host; at most one for each address of a machine.
pub type Assignments = BTreeSet<Assignment>;

/// Where it is noted who has which: beside the state of the network.
pub fn egress_file(state_file: &Path) -> PathBuf {
    state_file.with_extension("egress.json")
}

/// What was noted.
pub(crate) fn read(state_file: &Path) -> Result<Assignments, NetworkError> {
    let file = egress_file(state_file);
    let failed = || NetworkError::io(format!("read the egress addresses in {}", file.display()));
    match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other).map_err(failed()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Assignments::new()),
        Err(error) => Err(failed()(error)),
    }
}

pub(crate) fn write(state_file: &Path, assignments: &Assignments) -> Result<(), NetworkError> {
    let file = egress_file(state_file);
    let failed = || NetworkError::io(format!("write the egress addresses to {}", file.display()));
    let text = serde_json::to_vec(assignments).map_err(io::Error::other).map_err(failed())?;
    state::replace(&file, &text).map_err(failed())
}

/// What of these is not among others any more: connections that have it are to be cut.
pub(crate) fn gone<'a>(
    before: &'a Assignments,
    after: &Assignments,
) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<'a> {
    let kept: BTreeSet<_> = after.iter().map(|one| (one.machine, one.address)).collect();
    let pairs = before.iter().map(|one| (one.machine, one.address));
    pairs.filter(move |pair| !kept.contains(pair))
}

impl Network {
    /// Gives machines these egress addresses and takes all others away: at once, for new
    /// connections. Connections under addresses that are taken away are cut. They stay when this
    /// process ends, and the next has them from its beginning.
    ///
    /// # Errors
    /// When the host refuses. Then it may be done in part; no machine that has an egress address
    /// before or after sends under another.
    pub async fn set_egress(&self, wanted: Assignments) -> Result<(), NetworkError> {
        self.change_egress(move |assignments| *assignments = wanted).await
    }

    /// Takes the egress addresses of one machine away, where it has some.
    ///
    /// # Errors
    /// As of [`Self::set_egress`].
    pub async fn clear_egress(&self, machine: &MachineAddresses) -> Result<(), NetworkError> {
        let own = [IpAddr::from(machine.ipv4), machine.ipv6.into()];
        self.change_egress(move |assignments| {
            assignments.retain(|assignment| !own.contains(&assignment.machine));
        })
        .await
    }

    async fn change_egress(
        &self,
        change: impl FnOnce(&mut Assignments) + Send + 'static,
    ) -> Result<(), NetworkError> {
        let _turn = self.egress_turn.lock().await;
        let side = self.side.clone();
        let before = side.egress_v6();
        blocking(move || side.change_egress(change)).await?;
        self.side.answer(&before).await
    }

    /// Connections of machines that found no free port of their egress address; none where the
    /// kernel does not tell.
    pub fn refused(&self) -> Option<watch::Receiver<Refused>> {
        self.refused.as_ref().map(Counter::refused)
    }
}
