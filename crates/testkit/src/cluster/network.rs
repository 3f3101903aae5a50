//! What connects the nodes of a cluster: it can be cut, lose and repeat messages, and make them
//! late.
//!
//! Each message carries its sender, so that who receives it knows over which link it came.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use caddis_api::WorkerId;
use caddis_bus::{
    AskWindow, Bus, BusError, Handler, InProcessBus, MAX_MESSAGE_BYTES, Published, Serving,
    message::{self, Envelope},
    stream::{StreamService, Streams},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{runtime::Handle, sync::mpsc};

/// A node of a cluster, by its number among those of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    /// A gateway.
    Gateway(u8),
    /// A worker.
    Worker(u8),
}

impl Node {
    fn address(self) -> [u8; 2] {
        match self {
            Self::Gateway(number) => [b'g', number],
            Self::Worker(number) => [b'w', number],
        }
    }

    /// The sender of a message, and the message.
    fn read(framed: &Bytes) -> Option<(Self, Bytes)> {
        let sender = match *framed.get(..2)? {
            [b'g', number] => Self::Gateway(number),
            [b'w', number] => Self::Worker(number),
            _ => return None,
        };
        Some((sender, framed.slice(2..)))
    }
}

/// The network of a cluster. Clones are the same.
#[derive(Clone, Default)]
pub struct Network {
    bus: InProcessBus,
    weather: Arc<Mutex<Weather>>,
    endpoints: Arc<Mutex<HashMap<WorkerId, Endpoint>>>,
}

/// A worker's stream endpoint.
#[derive(Clone)]
struct Endpoint {
    node: Node,
    service: Arc<dyn StreamService>,
    runtime: Handle,
}

/// What befalls messages.
#[derive(Default)]
struct Weather {
    /// Pairs that can't reach each other.
    cut: HashSet<(Node, Node)>,
    /// Whose publications are lost.
    muted: HashSet<Node>,
    /// For whom there is no bus.
    without_bus: HashSet<Node>,
    /// Requests arrive twice.
    repeat: bool,
    /// Time each message takes.
    delay: Duration,
    /// How far a node's clock is ahead, milliseconds.
    skew: HashMap<Node, i64>,
}

impl Network {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock()
    }

    /// Nothing gets from one of these nodes to the other, nor back.
    pub fn cut(&self, one: Node, other: Node) {
        self.weather().cut.extend([(one, other), (other, one)]);
    }

    /// All nodes reach each other, and nothing is lost.
    pub fn heal(&self) {
        let mut weather = self.weather();
        weather.cut.clear();
        weather.muted.clear();
        weather.without_bus.clear();
        weather.repeat = false;
        weather.delay = Duration::ZERO;
    }

    /// What a node publishes is lost, or is not any more.
    pub fn mute(&self, node: Node, is_muted: bool) {
        let mut weather = self.weather();
        match is_muted {
            true => weather.muted.insert(node),
            false => weather.muted.remove(&node),
        };
    }

    /// A node has no bus: what it tries there fails.
    pub fn take_bus(&self, node: Node) {
        self.weather().without_bus.insert(node);
    }

    /// Every request arrives twice.
    pub fn repeat(&self) {
        self.weather().repeat = true;
    }

    /// Messages take so long.
    pub fn delay(&self, delay: Duration) {
        self.weather().delay = delay;
    }

    /// A node's clock is ahead by so many milliseconds of those of the others, as far as its
    /// messages tell.
    pub fn skew(&self, node: Node, ahead_ms: i64) {
        self.weather().skew.insert(node, ahead_ms);
    }

    fn reaches(&self, from: Node, to: Node) -> bool {
        !self.weather().cut.contains(&(from, to))
    }

    /// How far the clock of one node is ahead of another's, milliseconds.
    fn ahead(&self, of: Node, other: Node) -> i64 {
        let weather = self.weather();
        let skew = |node: Node| weather.skew.get(&node).copied().unwrap_or(0);
        skew(of) - skew(other)
    }

    async fn pass(&self) {
        let delay = self.weather().delay;
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
    }

    /// A worker's stream endpoint, and where it runs.
    pub fn connect(
        &self,
        worker: &WorkerId,
        node: Node,
        service: Arc<dyn StreamService>,
        runtime: Handle,
    ) {
        self.endpoints().insert(worker.clone(), Endpoint { node, service, runtime });
    }

    /// It is gone.
    pub fn disconnect(&self, worker: &WorkerId) {
        self.endpoints().remove(worker);
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<WorkerId, Endpoint>> {
        self.endpoints.lock()
    }

    /// The network as a node has it.
    pub fn of(&self, node: Node) -> Port {
        Port { node, network: self.clone() }
    }
}

/// A node's way into the network.
#[derive(Clone)]
pub struct Port {
    node: Node,
    network: Network,
}

impl Port {
    fn has_bus(&self, subject: &str) -> Result<(), BusError> {
        if self.network.weather().without_bus.contains(&self.node) {
            return Err(BusError::NotDelivered(subject.to_owned()));
        }
        Ok(())
    }

    fn frame(&self, subject: &str, payload: &[u8]) -> Result<Bytes, BusError> {
        self.has_bus(subject)?;
        if payload.len() > MAX_MESSAGE_BYTES - 2 {
            return Err(BusError::TooLarge { subject: subject.to_owned(), bytes: payload.len() });
        }
        Ok([&self.node.address(), payload].concat().into())
    }
}

/// A handler that hears what reaches its node. It works where the node runs, so that its work ends
/// with the node.
struct Reached {
    port: Port,
    /// None once its node is gone.
    handler: Mutex<Option<Arc<dyn Handler>>>,
    runtime: Handle,
}

impl Reached {
    async fn work(&self, request: Bytes) -> Bytes {
        let handler = self.handler.lock().clone();
        if let Some(handler) = handler {
            let work = self.runtime.spawn(async move { handler.handle(request).await });
            if let Ok(answer) = work.await {
                return answer;
            }
        }
        // It says nothing any more. Who asked may wait for long, which must not keep open what it
        // had: its database.
        drop(self.handler.lock().take());
        std::future::pending().await
    }
}

#[async_trait]
impl Handler for Reached {
    async fn handle(&self, request: Bytes) -> Bytes {
        let network = &self.port.network;
        let Some((sender, request)) = Node::read(&request) else { return Bytes::new() };
        network.pass().await;
        if !network.reaches(sender, self.port.node) {
            return std::future::pending().await;
        }
        let request = with_clock_of(self.port.node, sender, network, request);
        if network.weather().repeat {
            self.work(request.clone()).await;
        }
        let answer = self.work(request).await;
        if !network.reaches(self.port.node, sender) {
            return std::future::pending().await;
        }
        answer
    }
}

/// A request as if its deadline had been told by a clock that is ahead.
fn with_clock_of(receiver: Node, sender: Node, network: &Network, request: Bytes) -> Bytes {
    let ahead = network.ahead(receiver, sender);
    match message::decode::<Envelope>("cluster", &request) {
        Ok(mut envelope) if ahead != 0 => {
            envelope.not_after = envelope.not_after.moved_by(-ahead);
            message::encode(&envelope)
        }
        _ => request,
    }
}

#[async_trait]
impl Bus for Port {
    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, BusError> {
        self.network.bus.request(subject, self.frame(subject, &payload)?, deadline).await
    }

    async fn ask_all(
        &self,
        subject: &str,
        payload: Bytes,
        window: AskWindow,
    ) -> Result<Vec<Bytes>, BusError> {
        self.network.bus.ask_all(subject, self.frame(subject, &payload)?, window).await
    }

    async fn serve(&self, subject: &str, handler: Arc<dyn Handler>) -> Result<Serving, BusError> {
        self.has_bus(subject)?;
        self.network
            .bus
            .serve(
                subject,
                Arc::new(Reached {
                    port: self.clone(),
                    handler: Mutex::new(Some(handler)),
                    runtime: Handle::current(),
                }),
            )
            .await
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        if self.network.weather().muted.contains(&self.node) {
            return Ok(());
        }
        self.network.bus.publish(subject, self.frame(subject, &payload)?).await
    }

    async fn subscribe(&self, subject: &str) -> Result<mpsc::Receiver<Published>, BusError> {
        self.has_bus(subject)?;
        let mut all = self.network.bus.subscribe(subject).await?;
        let (sender, receiver) = mpsc::channel(4096);
        let port = self.clone();
        tokio::spawn(async move {
            while let Some(published) = all.recv().await {
                let Some((from, payload)) = Node::read(&published.payload) else { continue };
                port.network.pass().await;
                if port.network.reaches(from, port.node)
                    && sender.send(Published { payload, ..published }).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

#[async_trait]
impl Streams for Port {
    async fn call(
        &self,
        worker: &WorkerId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BusError> {
        let endpoint = self.network.endpoints().get(worker).cloned();
        let not_delivered = || BusError::NotDelivered(format!("streams of worker {worker}"));
        let Endpoint { node, service, runtime } = endpoint.ok_or_else(not_delivered)?;
        self.network.pass().await;
        if !self.network.reaches(self.node, node) {
            return Err(not_delivered());
        }
        runtime.spawn(async move { service.call(request).await }).await.map_err(|_| not_delivered())
    }
}
