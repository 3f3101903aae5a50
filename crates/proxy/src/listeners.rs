//! Ports that the proxy listens to: two that all apps share, and those of services on addresses of
//! the app's own, which come and go with the routes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    AppName, ErrorCode, Protocol,
    app::App,
    connection::{self, Entry},
    connections,
    core::Core,
    error::Failure,
    rare::Rare,
    udp,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Rest after an accept that failed for want of descriptors or memory; nothing tells when there are
/// some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Least time between two warnings of one listener.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Rest between attempts to bind: at first, and at most. Nothing tells when an address comes.
const FIRST_BIND_PAUSE: Duration = Duration::from_millis(100);
const MAX_BIND_PAUSE: Duration = Duration::from_secs(10);

/// A port that is, or should be, listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// The app that it is for. None: all.
    pub app: Option<AppName>,
    /// What comes there.
    pub protocol: Protocol,
    /// The address and port.
    pub address: SocketAddr,
    /// Why it is not listened to; it is tried again.
    pub error: Option<String>,
}

/// Listeners on addresses of apps.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    own: Mutex<HashMap<Place, Own>>,
}

/// Where an app is listened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    protocol: Protocol,
    address: SocketAddr,
    /// It is within a private network.
    is_private: bool,
}

#[derive(Debug)]
struct Own {
    app: AppName,
    end: CancellationToken,
    error: Arc<Mutex<Option<String>>>,
}

impl Listeners {
    /// Listens to what an app's routes say, and to nothing else of it.
    pub(crate) fn sync(&self, core: &Arc<Core>, app: &Arc<App>) {
        let wanted = wanted(core, app);
        let mut own = self.own.lock();
        own.retain(|place, one| {
            let is_kept = one.app != app.name || wanted.contains(place);
            if !is_kept {
                one.end.cancel();
            }
            is_kept
        });
        for place in wanted {
            match own.get(&place) {
                Some(other) if other.app == app.name => continue,
                // An address that moves: the routes that came last say whose it is.
                Some(other) => other.end.cancel(),
                None => {}
            }
            let one = Own {
                app: app.name.clone(),
                end: core.stopping.child_token(),
                error: Arc::default(),
            };
            // At once, so that a service answers when its routes have been applied.
            let bound = Bound::new(core, place).map_err(|error| {
                note(&one.error, place.address, &error);
                let text = format!("can't listen on {}: {error}; trying again", place.address);
                core.report(app, &Failure::new(ErrorCode::PP01, text), None);
            });
            let (core, app, bound) = (core.clone(), app.clone(), bound.ok());
            let (end, error) = (one.end.clone(), one.error.clone());
            core.tasks.clone().spawn(async move {
                tokio::select! {
                    () = listen(&core, &app, bound, place, &end, &error) => {}
                    () = end.cancelled() => {}
                }
            });
            own.insert(place, one);
        }
    }

    /// What is listened to for single apps, by address.
    pub(crate) fn status(&self) -> Vec<ListenerStatus> {
        let own = self.own.lock();
        let sorted: BTreeMap<_, _> = own.iter().collect();
        let status = |(place, one): (&Place, &Own)| ListenerStatus {
            app: Some(one.app.clone()),
            protocol: place.protocol,
            address: place.address,
            error: one.error.lock().clone(),
        };
        sorted.into_iter().map(status).collect()
    }
}

fn wanted(core: &Core, app: &App) -> HashSet<Place> {
    let compiled = app.compiled();
    let endpoints = || compiled.endpoints.iter();
    let all = endpoints().flat_map(|one| one.port.start..=one.port.end);
    let all = all.map(|port| (Protocol::Tcp, port));
    let udp = compiled.udp.keys().map(|port| (Protocol::Udp, *port));
    let without_tls = endpoints().filter(|one| !one.port.handlers.ends_tls());
    let without_tls = without_tls.flat_map(|one| one.port.start..=one.port.end);
    let without_tls = without_tls.map(|port| (Protocol::Tcp, port));

    let own: Vec<_> = compiled.addresses.iter().map(|address| (*address, false)).collect();
    let private = compiled.private_addresses.iter();
    let private: Vec<_> = private.map(|address| ((*address).into(), true)).collect();
    let most = core.config.max_ports_per_address;
    let mut wanted = HashSet::new();
    for (addresses, ports) in
        [(own, all.chain(udp).collect::<Vec<_>>()), (private, without_tls.collect::<Vec<_>>())]
    {
        if ports.len() > most && !addresses.is_empty() {
            let ports = ports.len();
            tracing::warn!(app = %app.name, ports, most, "not all ports are listened to");
        }
        for (address, is_private) in addresses {
            wanted.extend(ports.iter().take(most).map(|(protocol, port)| Place {
                protocol: *protocol,
                address: SocketAddr::new(address, *port),
                is_private,
            }));
        }
    }
    wanted
}

fn note(kept: &Mutex<Option<String>>, address: SocketAddr, error: &io::Error) {
    tracing::warn!(%address, %error, "can't listen; trying again");
    *kept.lock() = Some(error.to_string());
}

/// A socket of an app's own address.
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Bound {
    fn new(core: &Core, Place { protocol, address, is_private }: Place) -> io::Result<Self> {
        match protocol {
            Protocol::Tcp if is_private => {
                let Some(networks) = &core.config.private_networks else {
                    return Err(io::Error::other("the proxy is in no private network"));
                };
                let listener = networks.open(Box::new(move || open(address, true)))?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            Protocol::Tcp => bind(address, true).map(Self::Tcp),
            Protocol::Udp => udp::bind(address).map(Self::Udp),
        }
    }
}

async fn listen(
    core: &Arc<Core>,
    app: &Arc<App>,
    bound: Option<Bound>,
    place: Place,
    end: &CancellationToken,
    error: &Mutex<Option<String>>,
) {
    let Place { address, is_private, .. } = place;
    let bound = match bound {
        Some(bound) => bound,
        None => until_bound(error, || Bound::new(core, place)).await,
    };
    match bound {
        Bound::Tcp(listener) => {
            let entry = Entry::Own { app: app.name.clone(), port: address.port(), is_private };
            accept(core, listener, entry).await;
        }
        Bound::Udp(socket) => udp::serve(core, app, socket, address, end).await,
    }
}

/// A port that all apps share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) address: SocketAddr,
    error: Arc<Mutex<Option<String>>>,
    bound: Option<TcpListener>,
}

impl Shared {
    /// Binds it. One that something else may have is tried again once it is served.
    pub(crate) fn new(address: SocketAddr, may_be_taken: bool) -> io::Result<Self> {
        let error = Arc::default();
        let (address, bound) = match bind(address, false) {
            Ok(bound) => (bound.local_addr()?, Some(bound)),
            Err(failed) if may_be_taken && failed.kind() == io::ErrorKind::AddrInUse => {
                note(&error, address, &failed);
                (address, None)
            }
            Err(failed) => return Err(failed),
        };
        Ok(Self { address, error, bound })
    }

    /// Accepts connections in a task of the proxy's.
    pub(crate) fn serve(&mut self, core: &Arc<Core>, entry: Entry) {
        let (core, bound) = (core.clone(), self.bound.take());
        let (address, error) = (self.address, self.error.clone());
        core.tasks.clone().spawn(async move {
            let listener = match bound {
                Some(listener) => listener,
                None => tokio::select! {
                    listener = until_bound(&error, || bind(address, false)) => listener,
                    () = core.stopping.cancelled() => return,
                },
            };
            accept(&core, listener, entry).await;
        });
    }

    pub(crate) fn status(&self) -> ListenerStatus {
        ListenerStatus {
            app: None,
            protocol: Protocol::Tcp,
            address: self.address,
            error: self.error.lock().clone(),
        }
    }
}

/// Tries to bind until that can be done.
async fn until_bound<T>(error: &Mutex<Option<String>>, bind: impl Fn() -> io::Result<T>) -> T {
    let mut pause = FIRST_BIND_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_BIND_PAUSE);
        match bind() {
            Ok(bound) => {
                *error.lock() = None;
                return bound;
            }
            Err(failed) => *error.lock() = Some(failed.to_string()),
        }
    }
}

/// A socket that listens to an address, which may be one of an app's own.
pub(crate) fn bind(address: SocketAddr, is_of_app: bool) -> io::Result<TcpListener> {
    TcpListener::from_std(open(address, is_of_app)?)
}

fn open(address: SocketAddr, is_of_app: bool) -> io::Result<std::net::TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        if is_of_app {
            // A local route alone, which is enough for IPv4, is not for the kernel here.
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections until dropped, or the proxy stops.
pub(crate) async fn accept(core: &Arc<Core>, listener: TcpListener, entry: Entry) {
    tokio::select! {
        () = core.routed.cancelled() => {}
        () = core.stopping.cancelled() => return,
    }
    let mut warned_at: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = core.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Dropped, it is closed.
                let Some(admitted) = connections::admit(core, &entry) else { continue };
                let (core, entry) = (core.clone(), entry.clone());
                core.tasks.clone().spawn(async move {
                    let cut = core.cut.clone();
                    let cut = pin!(cut.cancelled());
                    tokio::select! {
                        biased;
                        // First: else a client is told that its machine broke.
                        () = Rare::new(cut) => {}
                        () = connection::attend(core, stream, peer, entry, admitted) => {}
                    }
                });
            }
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                if warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
                    tracing::warn!(%error, "can't accept; raise the limit of open files");
                    warned_at = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an accept failed because of a client that has gone again.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
