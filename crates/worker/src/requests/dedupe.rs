//! Requests from the bus: each is carried out once, however often it comes, also when the worker
//! was started again meanwhile: its id is recorded with what it has changed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use caddis_api::{ApiError, ErrorCode, UnixMillis};
use caddis_bus::{
    Handler, MAX_MESSAGE_BYTES,
    message::{Envelope, PROTOCOL, WorkerReply, WorkerRequest, WorkerResult, decode, encode},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared as SharedFuture},
};
use parking_lot::Mutex;
use serde::Deserialize;

use super::{accepted, handle};
use crate::{clock::Clock, engine::Shared, store::StoreError};

/// How long an accepted request is remembered on the disk: longer than any sender waits for an
/// answer.
const RECORDED: Duration = Duration::from_secs(10 * 60);
/// Answers that are remembered, so that a repeated request does nothing twice.
const REMEMBERED: usize = 4096;
/// Bytes of all of them together, at most: an answer may hold a large configuration.
const REMEMBERED_BYTES: usize = 8 << 20;

type Answer = SharedFuture<BoxFuture<'static, Bytes>>;

/// Serves the worker's own subject.
pub struct RequestHandler {
    shared: Arc<Shared>,
    answers: Mutex<Answers>,
    /// Ids of requests that an earlier process has accepted.
    accepted_before: HashSet<String>,
}

#[derive(Default)]
struct Answers {
    /// With the bytes of those that are known.
    by_id: HashMap<String, (Answer, usize)>,
    order: VecDeque<String>,
    bytes: usize,
}

impl Answers {
    /// An answer is known.
    fn known(&mut self, request_id: &str, size: usize) {
        match self.by_id.get_mut(request_id) {
            Some((_, known)) if *known == 0 => *known = size,
            _ => return,
        }
        self.bytes += size;
        self.forget_surplus();
    }

    /// Never one that is not known yet: the same request would be carried out twice.
    fn forget_surplus(&mut self) {
        while (self.bytes > REMEMBERED_BYTES || self.order.len() > REMEMBERED)
            && self
                .order
                .front()
                .and_then(|id| self.by_id.get(id))
                .is_some_and(|(_, size)| *size > 0)
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, size)) =
            self.order.pop_front().and_then(|oldest| self.by_id.remove(&oldest))
        {
            self.bytes -= size;
        }
    }
}

impl RequestHandler {
    /// A handler for this worker's requests, which remembers what an earlier process has accepted.
    ///
    /// # Errors
    /// When that can't be read.
    pub async fn open(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let accepted_before = shared.store.accepted_since(remembered_since(&shared.clock)).await?;
        Ok(Self { shared, answers: Mutex::default(), accepted_before })
    }

    /// Whether a request was carried out, or is being: its answer is the same however late it is
    /// asked for.
    fn remembers(&self, request_id: &str) -> bool {
        self.accepted_before.contains(request_id)
            || self.answers.lock().by_id.contains_key(request_id)
    }

    fn answer(&self, envelope: Envelope) -> Answer {
        let mut answers = self.answers.lock();
        if let Some((answer, _)) = answers.by_id.get(&envelope.request_id) {
            return answer.clone();
        }
        let (shared, id, request) =
            (self.shared.clone(), envelope.request_id.clone(), envelope.request);
        let was_accepted = self.accepted_before.contains(&id);
        // A task of its own: a requester that hangs up cancels nothing.
        let task = tokio::spawn(async move {
            let result = match was_accepted {
                true => accepted(&shared, request).await,
                false => handle(&shared, Some(id), request).await,
            };
            encode(&result)
        });
        let answer = async move {
            let failed = |_| {
                encode::<WorkerResult>(&Err(ApiError::internal(
                    "the request failed, see the server's log",
                )))
            };
            task.await.unwrap_or_else(failed)
        };
        let answer = answer.boxed().shared();
        answers.by_id.insert(envelope.request_id.clone(), (answer.clone(), 0));
        answers.order.push_back(envelope.request_id);
        answers.forget_surplus();
        answer
    }
}

#[async_trait]
impl Handler for RequestHandler {
    async fn handle(&self, request: Bytes) -> Bytes {
        let answer = self.carry_out(&request).await;
        if answer.len() > MAX_MESSAGE_BYTES {
            // It is remembered, or had again, when it is asked for over the stream endpoint.
            return encode::<WorkerResult>(&Ok(WorkerReply::TooLarge));
        }
        answer
    }
}

impl RequestHandler {
    /// The answer to an [`Envelope`], of any size.
    pub async fn carry_out(&self, request: &[u8]) -> Bytes {
        if let Err(error) = check_protocol(request) {
            return encode::<WorkerResult>(&Err(error));
        }
        match decode::<Envelope>("worker", request) {
            Ok(envelope)
                if is_late(&envelope, self.shared.clock.unix_now())
                    && !self.remembers(&envelope.request_id) =>
            {
                let text = "unavailable: the request reached its host too late and was not carried \
                            out, try again; if this persists, compare the clocks of the hosts";
                encode::<WorkerResult>(&Err(ApiError::new(ErrorCode::Unavailable, text)))
            }
            // What changes nothing may be done twice; its answers, whole listings among them, are
            // not worth keeping.
            Ok(envelope) if !may_change(&envelope.request) => {
                encode(&handle(&self.shared, None, envelope.request).await)
            }
            Ok(envelope) => {
                let id = envelope.request_id.clone();
                let answer = self.answer(envelope).await;
                self.answers.lock().known(&id, answer.len());
                answer
            }
            Err(e) => encode::<WorkerResult>(&Err(ApiError::internal(e))),
        }
    }
}

/// Refuses what may not be understood, before it is read as a whole.
fn check_protocol(request: &[u8]) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Written {
        protocol: u32,
    }
    match decode::<Written>("worker", request) {
        Ok(written) if written.protocol > PROTOCOL => {
            let text = format!(
                "unavailable: the request uses protocol {}, its host {PROTOCOL}: upgrade that host",
                written.protocol
            );
            Err(ApiError::new(ErrorCode::Unavailable, text))
        }
        _ => Ok(()),
    }
}

/// Whether nobody waits for it any more: its sender may have done something else since.
fn is_late(envelope: &Envelope, now: UnixMillis) -> bool {
    envelope.not_after < now
}

fn may_change(request: &WorkerRequest) -> bool {
    use WorkerRequest::{
        Act, ActOnVolume, Create, CreateVolume, Drain, Log, Memory, Sleep, Supersede, Update, Wake,
    };
    match request {
        Memory { limit_mib, reclaim_mib, .. } => limit_mib.is_some() || reclaim_mib.is_some(),
        _ => matches!(
            request,
            Create(_)
                | Update { .. }
                | Act { .. }
                | CreateVolume(_)
                | ActOnVolume { .. }
                | Supersede { .. }
                | Drain { .. }
                | Wake { .. }
                | Sleep { .. }
                // Written twice they would be there twice.
                | Log { .. }
        ),
    }
}

/// Since when accepted requests are remembered.
pub fn remembered_since(clock: &Clock) -> UnixMillis {
    clock.unix_now() - RECORDED
}
