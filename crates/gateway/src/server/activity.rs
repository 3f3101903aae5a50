//! How many connections there may be, and which of them nobody would miss.
//!
//! A connection without a request in progress is idle, whether it waits between two requests, has
//! sent half of one, or has never said anything. When all places are taken, the one that has been
//! idle longest makes room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// How long a connection that was told to go may take, before another one is told.
const EVICTION: Duration = Duration::from_millis(100);

/// All connections of a server.
#[derive(Clone)]
pub(super) struct Places {
    room: Arc<Semaphore>,
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle {
    order: Mutex<Order>,
    /// One more has become idle.
    grown: Notify,
}

impl Idle {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock()
    }
}

/// When a connection became idle, and a number of its own.
type Rank = (Instant, u64);

/// Connections by when they became idle, as it was when they were listed: a request does not change
/// it, so that none has to wait for another connection's. Whoever looks for the first puts it
/// right.
#[derive(Default)]
struct Order {
    latest: u64,
    connections: BTreeMap<Rank, Arc<Activity>>,
}

impl Order {
    fn list(&mut self, connection: Arc<Activity>, state: &mut State) {
        self.latest += 1;
        let rank = (state.idle_since, self.latest);
        state.rank = Some(rank);
        self.connections.insert(rank, connection);
    }

    /// Takes out the one that has been idle longest, and those before it that are not idle, which
    /// list themselves again when they are.
    fn take_oldest(&mut self) -> Option<Arc<Activity>> {
        while let Some((listed, connection)) = self.connections.pop_first() {
            let mut state = connection.state();
            state.rank = None;
            if state.requests > 0 {
                continue;
            }
            if state.idle_since == listed.0 {
                drop(state);
                return Some(connection);
            }
            self.list(connection.clone(), &mut state);
        }
        None
    }
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            idle: Arc::default(),
        }
    }

    /// A place that is free.
    pub(super) fn free(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// A place, as soon as there is one: an idle connection is closed for it.
    pub(super) async fn make(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Some(place) = self.free() {
                return Some(place);
            }
            let grown = self.idle.grown.notified();
            if self.close_oldest() {
                if let Ok(place) =
                    tokio::time::timeout(EVICTION, self.room.clone().acquire_owned()).await
                {
                    return place.ok();
                }
                continue;
            }
            tokio::select! {
                place = self.room.clone().acquire_owned() => return place.ok(),
                () = grown => {}
            }
        }
    }

    /// Tells the connection that has been idle longest to go; `false` when none is idle.
    pub(super) fn close_oldest(&self) -> bool {
        let oldest = self.idle.order().take_oldest();
        oldest.map(|connection| connection.unwanted.notify_one()).is_some()
    }

    /// A new connection, idle until its first request.
    pub(super) fn activity(&self) -> Arc<Activity> {
        let state = State {
            requests: 0,
            idle_since: Instant::now(),
            rank: None,
            gone: false,
            latest: 0,
            offers: Vec::new(),
        };
        let activity = Arc::new(Activity {
            idle: self.idle.clone(),
            state: Mutex::new(state),
            became_idle: Notify::new(),
            unwanted: Notify::new(),
        });
        activity.list();
        activity
    }
}

/// What one connection is doing.
pub(super) struct Activity {
    idle: Arc<Idle>,
    /// Locked after the order, where both are.
    state: Mutex<State>,
    /// No request is in progress any more.
    became_idle: Notify,
    /// Its place is wanted.
    unwanted: Notify,
}

struct State {
    requests: usize,
    idle_since: Instant,
    /// Where it is listed.
    rank: Option<Rank>,
    /// It is nobody's to close any more.
    gone: bool,
    latest: u64,
    /// Since when there is something for the client that it has not taken, by answer. One that
    /// waits for us is not among them.
    offers: Vec<(u64, Instant)>,
}

/// Why a connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dispensable {
    /// It has been idle too long.
    Idle,
    /// Its place is wanted.
    Unwanted,
    /// Its client takes none of its answers.
    Stalled,
}

impl Activity {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A request is in progress as long as what this returns lives.
    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        let mut state = self.state();
        state.requests += 1;
        state.latest += 1;
        InProgress { activity: self.clone(), number: state.latest }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().requests == 0
    }

    /// Waits until no request is in progress.
    pub(super) async fn idle(&self) {
        while !self.is_idle() {
            self.became_idle.notified().await;
        }
    }

    /// Has it found by whoever looks for one that is idle.
    fn list(self: &Arc<Self>) {
        let mut order = self.idle.order();
        let mut state = self.state();
        if state.requests == 0 && state.rank.is_none() && !state.gone {
            order.list(self.clone(), &mut state);
            self.idle.grown.notify_one();
        }
    }

    /// Waits until the connection has been idle so long, its place is wanted while it is, or its
    /// client has taken nothing of any answer for as long.
    pub(super) async fn dispensable(&self, patience: Duration) -> Dispensable {
        loop {
            let look_at = match self.state().look(patience) {
                Ok(look_at) => look_at,
                Err(dispensable) => return dispensable,
            };
            tokio::select! {
                () = self.unwanted.notified() => {
                    if self.is_idle() {
                        return Dispensable::Unwanted;
                    }
                }
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
    }

    /// Nobody attends to it any more: it has ended, or was upgraded and is a session's now.
    pub(super) fn retire(&self) {
        let mut order = self.idle.order();
        let mut state = self.state();
        state.gone = true;
        if let Some(rank) = state.rank.take() {
            order.connections.remove(&rank);
        }
    }
}

impl State {
    /// When to look again whether it has become dispensable, if it is not.
    fn look(&self, patience: Duration) -> Result<Instant, Dispensable> {
        let now = Instant::now();
        if self.requests > 0 {
            let stalled = self.offers.len() >= self.requests
                && self.offers.iter().all(|(_, since)| now.duration_since(*since) >= patience);
            return if stalled { Err(Dispensable::Stalled) } else { Ok(now + patience / 4) };
        }
        let over = self.idle_since + patience;
        if over <= now { Err(Dispensable::Idle) } else { Ok(over) }
    }
}

/// A request in progress, until all of its answer is handed over.
pub(super) struct InProgress {
    activity: Arc<Activity>,
    number: u64,
}

impl InProgress {
    /// There is something for the client to take.
    pub(super) fn offer(&self) {
        let now = Instant::now();
        let mut state = self.activity.state();
        match state.offers.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, since)) => *since = now,
            None => state.offers.push((self.number, now)),
        }
    }

    /// The client has taken all there is so far.
    pub(super) fn wait(&self) {
        self.activity.state().offers.retain(|(number, _)| *number != self.number);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let activity = &self.activity;
        let mut state = activity.state();
        state.offers.retain(|(number, _)| *number != self.number);
        state.requests -= 1;
        if state.requests > 0 {
            return;
        }
        state.idle_since = Instant::now();
        let is_listed = state.rank.is_some();
        drop(state);
        activity.became_idle.notify_one();
        if !is_listed {
            activity.list();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_one_idle_longest_goes_first_and_none_with_a_request_in_progress() {
        let places = Places::new(3);
        let taken: Vec<_> = std::iter::from_fn(|| places.free()).collect();
        assert_eq!(taken.len(), 3);
        let [first, second, third] = [(); 3].map(|()| places.activity());
        let told = |activity: &Arc<Activity>| activity.dispensable(LONG).now_or_never();
        // The first is idle anew, the second works.
        drop(first.begin());
        let (one, two) = (second.begin(), second.begin());
        drop(one);
        assert!(places.close_oldest());
        assert_eq!((told(&third), told(&first)), (Some(Dispensable::Unwanted), None));
        assert!(places.close_oldest());
        assert_eq!((told(&first), told(&second)), (Some(Dispensable::Unwanted), None));
        assert!(!places.close_oldest(), "only one is left, and it works");
        // One that was told and got a request at that moment stays, and may be told again.
        let made = tokio::spawn({
            let places = places.clone();
            async move { places.make().await.is_some() }
        });
        drop(two);
        assert_eq!(second.dispensable(LONG).await, Dispensable::Unwanted);
        let again = second.begin();
        assert_eq!(told(&second), None);
        drop(again);
        drop(taken);
        assert!(made.await.unwrap());
        second.retire();
        drop(second.begin());
        assert!(!places.close_oldest(), "nobody attends to it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_answer_is_given_up() {
        let places = Places::new(1);
        let activity = places.activity();
        let requests = [activity.begin(), activity.begin()];
        let patience = Duration::from_secs(60);
        let told = async || tokio::time::timeout(LONG, activity.dispensable(patience)).await.ok();
        assert_eq!(told().await, None, "both are being worked on");
        requests[0].offer();
        assert_eq!(told().await, None, "one is");
        requests[1].offer();
        assert_eq!(told().await, Some(Dispensable::Stalled));
        requests[1].wait();
        assert_eq!(told().await, None, "one waits for us");
        requests[1].offer();
        tokio::time::advance(Duration::from_secs(50)).await;
        requests[1].offer();
        assert!(activity.state().look(patience).is_ok(), "it took something");
        let [one, two] = requests;
        drop(two);
        assert_eq!(told().await, Some(Dispensable::Stalled));
        drop(one);
        assert_eq!(told().await, Some(Dispensable::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_counted_from_the_end_of_the_last_request() {
        let places = Places::new(1);
        let activity = places.activity();
        let request = activity.begin();
        let mut waiting = Box::pin(activity.dispensable(Duration::from_secs(60)));
        assert_eq!((&mut waiting).now_or_never(), None);
        tokio::time::advance(LONG).await;
        assert_eq!((&mut waiting).now_or_never(), None, "a request may take as long as it likes");
        drop(request);
        assert_eq!((&mut waiting).now_or_never(), None);
        tokio::time::advance(Duration::from_secs(50)).await;
        drop(activity.begin());
        assert_eq!((&mut waiting).now_or_never(), None);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!((&mut waiting).now_or_never(), None);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!((&mut waiting).now_or_never(), Some(Dispensable::Idle));
    }
}
