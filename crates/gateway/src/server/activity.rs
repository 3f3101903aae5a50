//! How many connections there may be, and which of them nobody would miss.
//!
//! A connection without a request in progress is idle, whether it rests between two requests, has sent half of one, or has
//! never said anything. When all places are taken, the one that has been idle longest makes room.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
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
    /// Whole after a panic too: each change is one.
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that are idle, the one that has been so longest first.
#[derive(Default)]
struct Order {
    latest: u64,
    tokens: BTreeMap<u64, Arc<Notify>>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))), idle: Arc::default() }
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
                if let Ok(place) = tokio::time::timeout(EVICTION, self.room.clone().acquire_owned()).await {
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
        let oldest = self.idle.order().tokens.pop_first();
        oldest.map(|(_, token)| token.notify_one()).is_some()
    }

    /// A new connection, idle until its first request.
    pub(super) fn activity(&self) -> Arc<Activity> {
        let activity = Activity {
            idle: self.idle.clone(),
            requests: watch::Sender::new(0),
            place: AtomicU64::new(NOWHERE),
            unwanted: Arc::default(),
            offers: Mutex::default(),
        };
        activity.rest(&mut self.idle.order());
        Arc::new(activity)
    }
}

/// [`Activity::place`] of a connection that has requests in progress.
const NOWHERE: u64 = 0;
/// [`Activity::place`] of one that is nobody's to close any more.
const GONE: u64 = u64::MAX;

/// What one connection is doing.
pub(super) struct Activity {
    idle: Arc<Idle>,
    requests: watch::Sender<usize>,
    /// Where it is among those that are idle. Changed only under the lock of their order.
    place: AtomicU64,
    unwanted: Arc<Notify>,
    offers: Mutex<Offers>,
}

/// Since when there is something for the client that it has not taken, by answer. One that waits for us is not among them.
#[derive(Default)]
struct Offers {
    latest: u64,
    since: BTreeMap<u64, Instant>,
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
    /// A request is in progress as long as what this returns lives.
    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        let mut order = self.idle.order();
        self.requests.send_modify(|requests| *requests += 1);
        let place = self.place.load(Ordering::Relaxed);
        if place != GONE {
            order.tokens.remove(&place);
            self.place.store(NOWHERE, Ordering::Relaxed);
        }
        let mut offers = self.offers();
        offers.latest += 1;
        InProgress { activity: self.clone(), number: offers.latest }
    }

    /// Whole after a panic too: each change is one.
    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has left all of its answers where they are for so long.
    fn is_stalled(&self, patience: Duration) -> bool {
        let requests = *self.requests.borrow();
        let offers = self.offers();
        let is_old = |since: &Instant| since.elapsed() >= patience;
        requests > 0 && offers.since.len() >= requests && offers.since.values().all(is_old)
    }

    pub(super) fn is_idle(&self) -> bool {
        *self.requests.borrow() == 0
    }

    /// Waits until no request is in progress.
    pub(super) async fn idle(&self) {
        // The sender is in self.
        let _ = self.requests.subscribe().wait_for(|requests| *requests == 0).await;
    }

    fn rest(&self, order: &mut Order) {
        if self.place.load(Ordering::Relaxed) == GONE {
            return;
        }
        order.latest += 1;
        self.place.store(order.latest, Ordering::Relaxed);
        order.tokens.insert(order.latest, self.unwanted.clone());
        self.idle.grown.notify_one();
    }

    /// Waits until the connection has been idle so long, its place is wanted while it is, or its client has taken nothing
    /// of any answer for as long.
    pub(super) async fn dispensable(&self, patience: Duration) -> Dispensable {
        let mut requests = self.requests.subscribe();
        loop {
            let idle = *requests.borrow_and_update() == 0;
            tokio::select! {
                () = self.unwanted.notified() => {
                    if self.is_idle() {
                        return Dispensable::Unwanted;
                    }
                }
                () = tokio::time::sleep(patience), if idle => return Dispensable::Idle,
                () = tokio::time::sleep(patience / 4), if !idle => {
                    if self.is_stalled(patience) {
                        return Dispensable::Stalled;
                    }
                }
                // The sender is in self.
                _ = requests.changed() => {}
            }
        }
    }

    /// Nobody attends to it any more: it has ended, or was upgraded and is a session's now.
    pub(super) fn retire(&self) {
        let mut order = self.idle.order();
        order.tokens.remove(&self.place.swap(GONE, Ordering::Relaxed));
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
        self.activity.offers().since.insert(self.number, Instant::now());
    }

    /// The client has taken all there is so far.
    pub(super) fn wait(&self) {
        self.activity.offers().since.remove(&self.number);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.wait();
        let mut order = self.activity.idle.order();
        self.activity.requests.send_modify(|requests| *requests -= 1);
        if self.activity.is_idle() {
            self.activity.rest(&mut order);
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
        // The first rests anew, the second works.
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
        assert!(!activity.is_stalled(patience), "it took something");
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
