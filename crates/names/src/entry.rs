//! What of a machine's record decides which names it has.

use std::{net::Ipv6Addr, sync::Arc};

use caddis_api::{MachineState, RawConfig, WorkerId};
use caddis_bus::message::MachineRecord;

/// The /48 of a network. Each machine's address is in that of its own.
pub(crate) type Prefix = [u16; 3];

/// The network of an address.
pub(crate) fn prefix(address: Ipv6Addr) -> Prefix {
    let [first, second, third, ..] = address.segments();
    [first, second, third]
}

/// A machine that is not destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub app: String,
    pub worker: WorkerId,
    pub region: String,
    pub address: Ipv6Addr,
    /// It is among the addresses of its names.
    pub is_answered: bool,
    pub settings: Arc<Settings>,
}

/// What its configuration says of names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Of the machine's placement, and of the change that brought the configuration: the same
    /// configuration need not be read again.
    version: (u64, u64),
    /// `dns.skip_registration`.
    pub is_hidden: bool,
    /// Its metadata as `value.key`, as it stands in names, each once.
    pub metadata: Vec<String>,
}

/// Members of an app that have a name together. All names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    All,
    Region(String),
    Host(WorkerId),
    /// `value.key`: so both may have dots.
    Metadata(String),
}

impl Entry {
    /// `None` for a machine that has no names any more.
    pub fn of(record: &MachineRecord, known: Option<&Self>) -> Option<Self> {
        let machine = &record.machine;
        if machine.state == MachineState::Destroyed {
            return None;
        }
        let version = (record.epoch, record.config_revision);
        let known = known.map(|known| &known.settings).filter(|known| known.version == version);
        let settings = known.cloned();
        Some(Self {
            app: record.app.to_ascii_lowercase(),
            worker: record.worker.clone(),
            region: machine.region.to_ascii_lowercase(),
            address: machine.private_ip.parse().ok()?,
            is_answered: is_answered(record),
            settings: settings
                .unwrap_or_else(|| Arc::new(Settings::of(machine.config.as_ref(), version))),
        })
    }

    /// The groups it is in.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let metadata = self.settings.metadata.iter().cloned().map(Group::Metadata);
        let of_all =
            [Group::All, Group::Region(self.region.clone()), Group::Host(self.worker.clone())];
        of_all.into_iter().chain(metadata)
    }
}

impl Settings {
    fn of(config: Option<&RawConfig>, version: (u64, u64)) -> Self {
        let fields = config.map(RawConfig::fields).unwrap_or_default();
        let dns = fields.get("dns").and_then(|dns| dns.get("skip_registration"));
        let metadata = fields.get("metadata").and_then(|metadata| metadata.as_object());
        let metadata = metadata.into_iter().flatten();
        let mut metadata: Vec<_> = metadata
            .filter_map(|(key, value)| Some(format!("{}.{key}", value.as_str()?)))
            .map(|name| name.to_ascii_lowercase())
            .collect();
        metadata.sort();
        metadata.dedup();
        Self { version, is_hidden: dns.and_then(|dns| dns.as_bool()) == Some(true), metadata }
    }
}

/// Whether a machine's address is answered: when it is started, as in the reference. Neither its
/// health checks nor a cordon count; if they should, this is the place.
fn is_answered(record: &MachineRecord) -> bool {
    record.machine.state == MachineState::Started
}
