//! Tells a proxy what there is to route: the machines of the view with the services that they are
//! configured with, and the addresses of apps in the catalog.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use caddis_api::{AppName, MachineId};
use caddis_bus::message::MachineRecord;
use caddis_catalog::{Catalog, CatalogError};
use caddis_view::{Change, View};
use tokio::{
    sync::broadcast::error::{RecvError, TryRecvError},
    time::Instant,
};

use crate::{
    AppRoutes, Proxy,
    translate::{self, Translated},
};

/// Time until a catalog that did not answer is asked again.
const CATALOG_RETRY: Duration = Duration::from_secs(1);

/// Keeps a proxy's routes those of the view and the catalog, until the view is gone.
pub async fn follow(proxy: Arc<Proxy>, view: Arc<View>, catalog: Catalog) {
    let mut changes = view.changes();
    let mut addresses_changed = catalog.addresses_changed();
    let mut feed = Feed {
        proxy,
        view,
        routed: HashMap::new(),
        apps: HashMap::new(),
        addresses: HashMap::new(),
    };
    feed.view.synced().await;
    let mut dirty = feed.known_apps();
    // When they are to be read, if they are.
    let mut read_at = Some(Instant::now());
    loop {
        if read_at.is_some_and(|at| at <= Instant::now()) {
            match feed.read_addresses(&catalog).await {
                Ok(changed) => {
                    read_at = None;
                    dirty.extend(changed);
                }
                // Nobody waits for it: apps have the addresses that were read last.
                Err(error) => {
                    tracing::warn!(%error, "can't read the addresses of apps");
                    read_at = Some(Instant::now() + CATALOG_RETRY);
                }
            }
        }
        feed.route(std::mem::take(&mut dirty));
        feed.proxy.routes_are_known();
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => feed.note(&change, &mut dirty),
                Err(RecvError::Lagged(_)) => dirty.extend(feed.known_apps()),
                Err(RecvError::Closed) => return,
            },
            changed = addresses_changed.changed() => match changed {
                Ok(()) => read_at = Some(Instant::now()),
                Err(_) => return,
            },
            () = tokio::time::sleep_until(read_at.unwrap_or_else(Instant::now)),
                if read_at.is_some() => {}
        }
        // What has come meanwhile is routed with it.
        loop {
            match changes.try_recv() {
                Ok(change) => feed.note(&change, &mut dirty),
                Err(TryRecvError::Lagged(_)) => dirty.extend(feed.known_apps()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
    }
}

/// A machine as it was routed last: configurations are read once, not whenever another machine of
/// the app changes.
struct Routed {
    epoch: u64,
    revision: u64,
    host_status: String,
    /// Nothing where it has no services.
    translated: Option<Translated>,
}

impl Routed {
    fn new(record: &MachineRecord) -> Self {
        Self {
            epoch: record.epoch,
            revision: record.revision,
            host_status: record.machine.host_status.clone(),
            translated: translate::machine(record),
        }
    }

    fn is_of(&self, record: &MachineRecord) -> bool {
        (self.epoch, self.revision) == (record.epoch, record.revision)
            && self.host_status == record.machine.host_status
    }
}

/// What is known of apps.
struct Feed {
    proxy: Arc<Proxy>,
    view: Arc<View>,
    /// Machines that were routed, by app.
    routed: HashMap<AppName, HashMap<MachineId, Routed>>,
    /// Their apps: of one that is forgotten nothing else is known.
    apps: HashMap<MachineId, AppName>,
    addresses: HashMap<AppName, Vec<IpAddr>>,
}

impl Feed {
    /// Apps that a change is about.
    fn note(&self, change: &Change, dirty: &mut BTreeSet<AppName>) {
        match change {
            Change::Machine(id) => match self.view.get(id) {
                Some(machine) => drop(dirty.insert(machine.record.app.clone())),
                None => dirty.extend(self.apps.get(id).cloned()),
            },
            Change::Listed(worker) => {
                dirty.extend(self.view.of_worker(worker).iter().map(|m| m.record.app.clone()));
                // Machines that are not there any more.
                let forgotten = self.apps.iter().filter(|(id, _)| self.view.get(id).is_none());
                dirty.extend(forgotten.map(|(_, app)| app.clone()));
            }
            // Machines whose host is not heard are told one by one.
            Change::Host(_)
            | Change::Volume(_)
            | Change::VolumesListed(_)
            | Change::Superseded(_) => {}
        }
    }

    fn known_apps(&self) -> BTreeSet<AppName> {
        let hosts = self.view.hosts().all();
        let listed = hosts.iter().flat_map(|(worker, _)| self.view.of_worker(worker));
        let listed = listed.map(|machine| machine.record.app.clone());
        listed.chain(self.apps.values().cloned()).chain(self.addresses.keys().cloned()).collect()
    }

    /// Reads all addresses; gives the apps that have others than before.
    async fn read_addresses(
        &mut self,
        catalog: &Catalog,
    ) -> Result<BTreeSet<AppName>, CatalogError> {
        let mut addresses: HashMap<AppName, Vec<IpAddr>> = HashMap::new();
        for address in catalog.addresses().await? {
            if !address.kind.is_shared() {
                addresses.entry(address.app).or_default().push(address.ip);
            }
        }
        let before = std::mem::replace(&mut self.addresses, addresses);
        let names: BTreeSet<_> = before.keys().chain(self.addresses.keys()).cloned().collect();
        let is_other = |app: &AppName| before.get(app) != self.addresses.get(app);
        Ok(names.into_iter().filter(is_other).collect())
    }

    fn route(&mut self, apps: BTreeSet<AppName>) {
        for app in apps {
            let routes = self.routes(&app);
            self.proxy.apply(app.as_str(), routes);
        }
    }

    /// What is routed to an app; nothing where none of its machines has services.
    fn routes(&mut self, app: &AppName) -> Option<AppRoutes> {
        let machines = self.view.of_app(app);
        let mut before = self.routed.remove(app).unwrap_or_default();
        for id in before.keys() {
            self.apps.remove(id);
        }
        let mut routed = HashMap::with_capacity(machines.len());
        for machine in machines {
            let (record, id) = (&machine.record, &machine.record.machine.id);
            let known = before.remove(id).filter(|known| known.is_of(record));
            routed.insert(id.clone(), known.unwrap_or_else(|| Routed::new(record)));
            self.apps.insert(id.clone(), app.clone());
        }
        let mut translated: Vec<_> =
            routed.values().filter_map(|one| one.translated.as_ref()).collect();
        // The newest configuration decides where two disagree.
        translated.sort_by_key(|one| Reverse((&one.version, &one.route.id)));
        let routes = translated.first().map(|newest| AppRoutes {
            addresses: self.addresses.get(app).cloned().unwrap_or_default(),
            primary_region: newest.primary_region.clone(),
            machines: translated.iter().map(|one| one.route.clone()).collect(),
        });
        if !routed.is_empty() {
            self.routed.insert(app.clone(), routed);
        }
        routes
    }
}
