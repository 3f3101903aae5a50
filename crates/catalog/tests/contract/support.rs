//! Stores to test, a clock that tests move, and stores that fail or give way at each call.

use std::{
    future::Future,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use caddis_api::{
    AppName, MachineId, PolicyId, RegionCode, UnixMillis, VolumeId, WorkerId, app::Organization,
};
use caddis_catalog::{
    Address, AddressPool, AppQuery, AppRecord, Catalog, KeyedRequest, MemoryStore, NewAddress,
    NewApp, NewPlacement, NewVolume, PERSONAL, PeerConflict, PeerRecord, PeerRow, Placement,
    SqliteStore, StoreError, StoredResponse, TokenRecord, VolumePlacement, WantedAddress,
    store::{
        AddressConflict, AddressRow, AppConflict, AppRow, EgressChange, EgressTable, NetworkRow,
        NewNetwork, PlacementConflict, PlacementRow, PolicyConflict, PolicyRow, Push, RequestLease,
        RequestRow, Store, Stored, TokenRow, VolumeConflict, VolumeRow,
    },
};
use tokio::sync::watch;

/// Makes a module per store, with each of these tests in it.
macro_rules! over_each_store {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            use crate::support::Fixture;
            $(#[tokio::test] async fn $test() { super::$test(&Fixture::sqlite()).await })*
        }
        mod memory {
            use crate::support::Fixture;
            $(#[tokio::test] async fn $test() { super::$test(&Fixture::memory()).await })*
        }
    };
}
pub(crate) use over_each_store;

/// A new store, and the catalog over it.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    pub catalog: Catalog,
    clock: Arc<AtomicU64>,
    _directory: Option<tempfile::TempDir>,
}

impl Fixture {
    pub fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("catalog.db")).unwrap();
        Self::new(Arc::new(store), Some(directory))
    }

    pub fn memory() -> Self {
        Self::new(Arc::new(MemoryStore::default()), None)
    }

    /// One of each store.
    pub fn each() -> [Self; 2] {
        [Self::sqlite(), Self::memory()]
    }

    fn new(store: Arc<dyn Store>, directory: Option<tempfile::TempDir>) -> Self {
        let clock = Arc::new(AtomicU64::new(1_000_000_000_000));
        Self { catalog: over(store.clone(), &clock), store, clock, _directory: directory }
    }

    /// Another catalog, as of another gateway, over this store behind something.
    pub fn behind(&self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Catalog {
        over(wrap(self.store.clone()), &self.clock)
    }

    pub fn now(&self) -> UnixMillis {
        UnixMillis::new(self.clock.load(Ordering::SeqCst))
    }

    pub fn pass(&self, time: std::time::Duration) {
        self.clock.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

fn over(store: Arc<dyn Store>, clock: &Arc<AtomicU64>) -> Catalog {
    let clock = clock.clone();
    Catalog::with_clock(store, Arc::new(move || UnixMillis::new(clock.load(Ordering::SeqCst))))
}

pub fn app(name: &str) -> NewApp {
    NewApp {
        name: Some(AppName::from_trusted(name)),
        organization: PERSONAL.to_owned(),
        ..NewApp::default()
    }
}

pub fn keyed_app(name: Option<&str>, key: &str) -> NewApp {
    NewApp {
        name: name.map(AppName::from_trusted),
        organization: PERSONAL.to_owned(),
        idempotency_key: Some(key.to_owned()),
        ..NewApp::default()
    }
}

pub fn worker(id: &str) -> WorkerId {
    WorkerId::from_trusted(id)
}

pub fn region(code: &str) -> RegionCode {
    RegionCode::from_trusted(code)
}

pub fn machine(app: &str, name: Option<&str>) -> NewPlacement {
    NewPlacement {
        app: AppName::from_trusted(app),
        name: name.map(str::to_owned),
        worker: worker("W1"),
        region: region("one"),
        request: None,
    }
}

pub fn volume(app: &str, name: &str) -> NewVolume {
    NewVolume {
        id: None,
        app: AppName::from_trusted(app),
        name: name.to_owned(),
        worker: worker("W1"),
        region: region("one"),
    }
}

pub fn machine_of(request: &str, app: &str, name: Option<&str>) -> NewPlacement {
    NewPlacement { request: Some(request.to_owned()), ..machine(app, name) }
}

/// Addresses that apps may have as their own.
pub fn pool(prefixes: &[&str]) -> AddressPool {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    AddressPool { prefixes, reserved: Vec::new() }
}

pub fn address(app: &str, wanted: WantedAddress) -> NewAddress {
    let (region, service_name) = (String::new(), String::new());
    NewAddress { app: AppName::from_trusted(app), wanted, region, service_name }
}

/// A request with the key `k`.
pub fn request(id: &str) -> KeyedRequest {
    KeyedRequest {
        caller: "c".to_owned(),
        key: "k".to_owned(),
        id: id.to_owned(),
        fingerprint: [1; 32],
    }
}

pub fn answer(body: &str) -> StoredResponse {
    StoredResponse {
        status: 200,
        content_type: Some("text/plain".to_owned()),
        body: Some(body.as_bytes().to_vec()),
    }
}

/// What happens at a call of a store.
#[async_trait]
pub trait AtCall: Send + Sync + 'static {
    /// Before it is carried out.
    async fn before(&self) -> Stored<()>;
    /// After it was.
    fn after(&self) -> Stored<()>;
}

/// Gives way so often before each call, so that calls made at the same time alternate.
pub struct GiveWay(pub usize);

#[async_trait]
impl AtCall for GiveWay {
    async fn before(&self) -> Stored<()> {
        for _ in 0..self.0 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn after(&self) -> Stored<()> {
        Ok(())
    }
}

/// Fails at one call, from 0.
pub struct FailAt {
    pub call: u64,
    /// It is carried out, and the answer is lost.
    pub answer_lost: bool,
    pub calls: AtomicU64,
}

impl FailAt {
    fn failed() -> StoreError {
        StoreError::Failed { attempt: "go on", disk_full: false, reason: "cut off".to_owned() }
    }
}

#[async_trait]
impl AtCall for FailAt {
    async fn before(&self) -> Stored<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call == self.call && !self.answer_lost { Err(Self::failed()) } else { Ok(()) }
    }

    fn after(&self) -> Stored<()> {
        let call = self.calls.load(Ordering::SeqCst) - 1;
        if call == self.call && self.answer_lost { Err(Self::failed()) } else { Ok(()) }
    }
}

/// A store with something at each of its calls.
pub struct Behind<A> {
    pub at: A,
    pub store: Arc<dyn Store>,
}

impl<A: AtCall> Behind<A> {
    async fn call<T>(&self, call: impl Future<Output = Stored<T>>) -> Stored<T> {
        self.at.before().await?;
        let done = call.await?;
        self.at.after()?;
        Ok(done)
    }
}

macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*) => {
        #[async_trait]
        impl<A: AtCall> Store for Behind<A> {
            $(async fn $name(&self $(, $argument: $type)*) -> Stored<$answer> {
                self.call(self.store.$name($($argument),*)).await
            })*

            fn addresses_changed(&self) -> watch::Receiver<u64> {
                self.store.addresses_changed()
            }
            fn peers_changed(&self) -> watch::Receiver<u64> {
                self.store.peers_changed()
            }
        }
    };
}

pass_on! {
    fn organization(&self, slug: &str) -> Option<Organization>;
    fn network(&self, organization: i32, name: &str) -> Option<NetworkRow>;
    fn insert_network(&self, network: NewNetwork) -> ();
    fn app(&self, name: &str) -> Option<AppRecord>;
    fn app_of_key(&self, organization: i32, key: &str) -> Option<AppRecord>;
    fn apps(&self, query: &AppQuery) -> Vec<AppRecord>;
    fn count_apps(&self, query: &AppQuery) -> u64;
    fn apps_in_deletion(&self) -> Vec<AppRecord>;
    fn insert_app(&self, app: AppRow) -> Result<i32, AppConflict>;
    fn mark_app_deleting(&self, number: i32, at_ms: UnixMillis) -> bool;
    fn delete_app(&self, number: i32, at_ms: UnixMillis) -> bool;
    fn placement(&self, machine: &MachineId) -> Option<Placement>;
    fn placements(&self, worker: Option<&WorkerId>) -> Vec<Placement>;
    fn placements_of(&self, app: i32) -> Vec<Placement>;
    fn egress(&self) -> EgressTable;
    fn change_egress(&self, from: u64, change: EgressChange) -> bool;
    fn insert_placement(&self, row: PlacementRow) -> Result<(), PlacementConflict>;
    fn move_placement(
        &self,
        machine: &MachineId,
        epoch: u64,
        worker: &WorkerId,
        region: &RegionCode
    ) -> bool;
    fn release_placement(&self, machine: &MachineId, at_ms: UnixMillis) -> ();
    fn volume(&self, id: &VolumeId) -> Option<VolumePlacement>;
    fn volumes_of(&self, app: i32) -> Vec<VolumePlacement>;
    fn volumes_on(&self, worker: &WorkerId) -> Vec<VolumePlacement>;
    fn insert_volume(&self, row: VolumeRow) -> Result<(), VolumeConflict>;
    fn delete_volume(&self, id: &VolumeId, at_ms: UnixMillis) -> ();
    fn undelete_volume(&self, id: &VolumeId) -> bool;
    fn addresses(&self, app: Option<i32>) -> Vec<Address>;
    fn insert_address(&self, row: AddressRow) -> Result<(), AddressConflict>;
    fn delete_address(&self, app: i32, ip: IpAddr) -> bool;
    fn policies(&self, app: Option<i32>) -> Vec<PolicyRow>;
    fn insert_policy(&self, row: PolicyRow) -> Result<(), PolicyConflict>;
    fn replace_policy(&self, row: PolicyRow) -> Result<(), PolicyConflict>;
    fn delete_policy(&self, app: i32, id: &PolicyId) -> bool;
    fn push_revision(&self, push: Push, worker: &WorkerId) -> u64;
    fn raise_push_revision(&self, push: Push, worker: &WorkerId, known: u64) -> u64;
    fn peers(&self) -> Vec<PeerRecord>;
    fn insert_peer(&self, row: PeerRow) -> Result<(), PeerConflict>;
    fn change_peer_key(&self, network: i64, name: &str, key: &str) -> Result<bool, PeerConflict>;
    fn delete_peer(&self, network: i64, name: &str) -> bool;
    fn note_request(&self, row: RequestRow, forget_before_ms: UnixMillis) -> Option<RequestRow>;
    fn take_request(&self, id: &str, from: Option<&RequestLease>, to: &RequestLease) -> bool;
    fn renew_request(&self, id: &str, lease: &RequestLease) -> bool;
    fn give_up_request(&self, id: &str, holder: &str) -> ();
    fn answer_request(&self, id: &str, answer: &StoredResponse) -> ();
    fn delete_request(&self, id: &str, holder: &str) -> ();
    fn placement_of_request(&self, id: &str) -> Option<Placement>;
    fn token(&self, hash: &[u8; 32]) -> Option<TokenRecord>;
    fn insert_token(&self, row: TokenRow) -> bool;
    fn replace_token(&self, row: TokenRow) -> ();
    fn check(&self, at_ms: UnixMillis) -> ();
}
