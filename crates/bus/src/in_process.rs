//! The bus of a single process. Payloads are bytes here too, so that nothing works on one host that
//! would not work on many; [`Chaos`] delays, drops and repeats messages in tests.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::mpsc, time::Instant};

use crate::{AskWindow, Bus, BusError, Handler, MAX_MESSAGE_BYTES, Published, Serving};

/// Messages a subscriber may lag behind before it loses some.
const SUBSCRIBER_QUEUE: usize = 4096;

/// Faults to inject, as probabilities from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// Seed of the random choices.
    pub seed: u64,
    /// Requests or answers that vanish.
    pub drop: f64,
    /// Requests that are delivered twice.
    pub repeat: f64,
    /// Longest delay of a delivery.
    pub delay: Duration,
}

/// The in-process bus. Clones share it.
#[derive(Clone, Default)]
pub struct InProcessBus {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tables: Mutex<Tables>,
    chaos: Option<(Chaos, Mutex<StdRng>)>,
}

type Registered = (u64, Arc<dyn Handler>);

#[derive(Default)]
struct Tables {
    next_id: u64,
    handlers: HashMap<String, Vec<Registered>>,
    subscribers: HashMap<String, Vec<mpsc::Sender<Published>>>,
}

enum Fault {
    Drop,
    Deliver { after: Duration, twice: bool },
}

impl InProcessBus {
    /// A bus that delivers everything once and at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// A bus that misbehaves.
    pub fn with_chaos(chaos: Chaos) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(chaos.seed));
        Self { shared: Arc::new(Shared { tables: Mutex::default(), chaos: Some((chaos, random)) }) }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.shared.tables.lock()
    }

    fn handlers(&self, subject: &str) -> Vec<Arc<dyn Handler>> {
        self.tables()
            .handlers
            .get(subject)
            .into_iter()
            .flatten()
            .map(|(_, handler)| handler.clone())
            .collect()
    }

    fn fault(&self) -> Fault {
        let Some((chaos, random)) = &self.shared.chaos else {
            return Fault::Deliver { after: Duration::ZERO, twice: false };
        };
        let mut random = random.lock();
        if random.random_bool(chaos.drop) {
            return Fault::Drop;
        }
        Fault::Deliver {
            after: chaos.delay.mul_f64(random.random()),
            twice: random.random_bool(chaos.repeat),
        }
    }

    /// One delivery and its answer; never answers when the message or its answer got lost.
    async fn deliver(&self, handler: Arc<dyn Handler>, payload: Bytes) -> Bytes {
        let Fault::Deliver { after, twice } = self.fault() else {
            return std::future::pending().await;
        };
        if after > Duration::ZERO {
            tokio::time::sleep(after).await;
        }
        // A receiver works on even when the sender gives up, as it would on another host.
        let work = tokio::spawn(async move {
            if twice {
                handler.handle(payload.clone()).await;
            }
            handler.handle(payload).await
        });
        let answer = work.await;
        match (answer, self.fault()) {
            (Ok(answer), Fault::Deliver { .. }) => answer,
            // The handler panicked or the answer got lost: to the sender both look like silence.
            _ => std::future::pending().await,
        }
    }
}

/// Refuses what no other transport would take.
fn fits(subject: &str, message: &Bytes) -> Result<(), BusError> {
    let bytes = message.len();
    if bytes > MAX_MESSAGE_BYTES {
        return Err(BusError::TooLarge { subject: subject.to_owned(), bytes });
    }
    Ok(())
}

#[async_trait]
impl Bus for InProcessBus {
    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, BusError> {
        fits(subject, &payload)?;
        let handler = self
            .handlers(subject)
            .into_iter()
            .next()
            .ok_or_else(|| BusError::NotDelivered(subject.to_owned()))?;
        let answer = tokio::time::timeout(deadline, self.deliver(handler, payload))
            .await
            .map_err(|_| BusError::TimedOut { subject: subject.to_owned(), deadline })?;
        fits(subject, &answer).map(|()| answer)
    }

    async fn ask_all(
        &self,
        subject: &str,
        payload: Bytes,
        window: AskWindow,
    ) -> Result<Vec<Bytes>, BusError> {
        fits(subject, &payload)?;
        let mut pending: FuturesUnordered<_> = self
            .handlers(subject)
            .into_iter()
            .map(|handler| self.deliver(handler, payload.clone()))
            .collect();
        let end = Instant::now() + window.deadline;
        let mut answers = Vec::new();
        loop {
            let until =
                if answers.is_empty() { end } else { end.min(Instant::now() + window.quiet) };
            match tokio::time::timeout_at(until, pending.next()).await {
                Ok(Some(answer)) => match fits(subject, &answer) {
                    Ok(()) => answers.push(answer),
                    Err(error) => tracing::error!(%error, "dropped a response"),
                },
                Ok(None) | Err(_) => return Ok(answers),
            }
        }
    }

    async fn serve(&self, subject: &str, handler: Arc<dyn Handler>) -> Result<Serving, BusError> {
        let mut tables = self.tables();
        let id = tables.next_id;
        tables.next_id += 1;
        tables.handlers.entry(subject.to_owned()).or_default().push((id, handler));
        let (bus, subject) = (self.clone(), subject.to_owned());
        Ok(Serving::new(move || {
            let mut tables = bus.tables();
            if let Some(handlers) = tables.handlers.get_mut(&subject) {
                handlers.retain(|(other, _)| *other != id);
            }
        }))
    }

    async fn publish(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        fits(subject, &payload)?;
        let Fault::Deliver { .. } = self.fault() else {
            return Ok(());
        };
        if let Some(subscribers) = self.tables().subscribers.get_mut(subject) {
            subscribers.retain(|subscriber| {
                let message = Published { subject: subject.to_owned(), payload: payload.clone() };
                !matches!(subscriber.try_send(message), Err(mpsc::error::TrySendError::Closed(_)))
            });
        }
        Ok(())
    }

    async fn subscribe(&self, subject: &str) -> Result<mpsc::Receiver<Published>, BusError> {
        let (sender, receiver) = mpsc::channel(SUBSCRIBER_QUEUE);
        self.tables().subscribers.entry(subject.to_owned()).or_default().push(sender);
        Ok(receiver)
    }
}
