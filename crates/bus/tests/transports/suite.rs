//! The suite. A transport is given as a future that makes a bus whose clones reach the same
//! network.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use caddis_bus::{AskWindow, Bus, BusError, Handler, MAX_MESSAGE_BYTES};
use tokio::sync::Notify;

/// Generous, for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

const WINDOW: AskWindow = AskWindow { quiet: Duration::from_millis(200), deadline: TIMEOUT };

/// Answers with its name and the request.
struct Echo(&'static str);

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Bytes) -> Bytes {
        [self.0.as_bytes(), &request].concat().into()
    }
}

struct Silent;

#[async_trait]
impl Handler for Silent {
    async fn handle(&self, _: Bytes) -> Bytes {
        std::future::pending().await
    }
}

/// Answers with so many bytes.
struct Long(usize);

#[async_trait]
impl Handler for Long {
    async fn handle(&self, _: Bytes) -> Bytes {
        vec![b'x'; self.0].into()
    }
}

/// Answers once it may, and counts to the end.
#[derive(Default)]
struct Slow {
    begun: Notify,
    may_end: Notify,
    ended: Notify,
    count: AtomicUsize,
}

#[async_trait]
impl Handler for Slow {
    async fn handle(&self, request: Bytes) -> Bytes {
        self.begun.notify_one();
        self.may_end.notified().await;
        self.count.fetch_add(1, Ordering::SeqCst);
        self.ended.notify_one();
        request
    }
}

pub async fn a_request_reaches_the_one_that_serves_and_is_not_delivered_when_nobody_does(
    bus: impl Bus,
) {
    let serving = bus.serve("a", Arc::new(Echo("1"))).await.unwrap();
    assert_eq!(bus.request("a", "x".into(), TIMEOUT).await.unwrap(), "1x");
    drop(serving);
    assert_eq!(
        bus.request("a", "x".into(), TIMEOUT).await,
        Err(BusError::NotDelivered("a".to_owned()))
    );
}

pub async fn silence_ends_at_the_deadline_and_not_before(bus: impl Bus) {
    let _serving = bus.serve("a", Arc::new(Silent)).await.unwrap();
    let deadline = Duration::from_millis(50);
    let begun = std::time::Instant::now();
    let answer = bus.request("a", Bytes::new(), deadline).await;
    assert_eq!(answer, Err(BusError::TimedOut { subject: "a".to_owned(), deadline }));
    assert!(begun.elapsed() >= deadline);
}

pub async fn a_receiver_works_on_when_the_sender_gives_up(bus: impl Bus) {
    let slow = Arc::new(Slow::default());
    let _serving = bus.serve("a", slow.clone()).await.unwrap();
    {
        let request = bus.request("a", "x".into(), TIMEOUT);
        tokio::select! {
            _ = request => panic!("it may not end yet"),
            () = slow.begun.notified() => {}
        }
    }
    slow.may_end.notify_one();
    tokio::time::timeout(TIMEOUT, slow.ended.notified()).await.unwrap();
    assert_eq!(slow.count.load(Ordering::SeqCst), 1);
}

pub async fn a_question_takes_those_that_answer_and_does_not_wait_for_the_silent(bus: impl Bus) {
    let _one = bus.serve("a", Arc::new(Echo("1"))).await.unwrap();
    let _two = bus.serve("a", Arc::new(Echo("2"))).await.unwrap();
    let _three = bus.serve("a", Arc::new(Silent)).await.unwrap();
    let asked =
        tokio::time::timeout(TIMEOUT / 2, bus.ask_all("a", "x".into(), WINDOW)).await.unwrap();
    let mut answers = asked.unwrap();
    answers.sort();
    assert_eq!(answers, ["1x", "2x"]);
}

pub async fn a_question_that_nobody_serves_has_no_answers(bus: impl Bus) {
    let window =
        AskWindow { quiet: Duration::from_millis(10), deadline: Duration::from_millis(50) };
    assert_eq!(bus.ask_all("a", "x".into(), window).await.unwrap(), Vec::<Bytes>::new());
}

pub async fn subscribers_get_what_is_published_after_they_came_in_its_order(bus: impl Bus) {
    bus.publish("s", "early".into()).await.unwrap();
    let (mut one, mut two) = (bus.subscribe("s").await.unwrap(), bus.subscribe("s").await.unwrap());
    let mut other = bus.subscribe("t").await.unwrap();
    for number in 0..100 {
        bus.publish("s", format!("{number}").into()).await.unwrap();
    }
    bus.publish("t", "other".into()).await.unwrap();
    for receiver in [&mut one, &mut two] {
        for number in 0..100 {
            let published = tokio::time::timeout(TIMEOUT, receiver.recv()).await.unwrap().unwrap();
            assert_eq!(
                (published.subject.as_str(), published.payload),
                ("s", format!("{number}").into())
            );
        }
    }
    assert_eq!(
        tokio::time::timeout(TIMEOUT, other.recv()).await.unwrap().unwrap().payload,
        "other"
    );
}

pub async fn publishing_does_not_wait_for_a_slow_subscriber(bus: impl Bus) {
    let mut slow = bus.subscribe("s").await.unwrap();
    let published = async {
        for _ in 0..100_000 {
            bus.publish("s", "x".into()).await.unwrap();
        }
    };
    tokio::time::timeout(TIMEOUT, published).await.expect("it waits for the subscriber");
    assert_eq!(slow.recv().await.unwrap().payload, "x", "the first are kept, the newest are lost");
}

pub async fn messages_of_the_limit_pass_and_larger_ones_are_refused(bus: impl Bus) {
    let full = Bytes::from(vec![b'x'; MAX_MESSAGE_BYTES]);
    let beyond = Bytes::from(vec![b'x'; MAX_MESSAGE_BYTES + 1]);
    let too_large = |subject: &str| BusError::TooLarge {
        subject: subject.to_owned(),
        bytes: MAX_MESSAGE_BYTES + 1,
    };
    let _echo = bus.serve("echo", Arc::new(Echo(""))).await.unwrap();
    let _long = bus.serve("long", Arc::new(Long(MAX_MESSAGE_BYTES + 1))).await.unwrap();
    let mut receiver = bus.subscribe("s").await.unwrap();

    assert_eq!(bus.request("echo", full.clone(), TIMEOUT).await.unwrap(), full);
    assert_eq!(
        bus.ask_all("echo", full.clone(), WINDOW).await.unwrap(),
        std::slice::from_ref(&full)
    );
    bus.publish("s", full.clone()).await.unwrap();
    assert_eq!(
        tokio::time::timeout(TIMEOUT, receiver.recv()).await.unwrap().unwrap().payload,
        full
    );

    assert_eq!(bus.request("echo", beyond.clone(), TIMEOUT).await, Err(too_large("echo")));
    assert_eq!(bus.ask_all("echo", beyond.clone(), WINDOW).await, Err(too_large("echo")));
    assert_eq!(bus.publish("s", beyond).await, Err(too_large("s")));
    assert_eq!(
        bus.request("long", "x".into(), TIMEOUT).await,
        Err(too_large("long")),
        "the answer is"
    );
    assert_eq!(bus.ask_all("long", "x".into(), WINDOW).await.unwrap(), Vec::<Bytes>::new());
}

pub async fn many_requests_are_carried_out_at_once(bus: impl Bus) {
    struct Together(tokio::sync::Barrier);

    #[async_trait]
    impl Handler for Together {
        async fn handle(&self, request: Bytes) -> Bytes {
            self.0.wait().await;
            request
        }
    }

    let _serving =
        bus.serve("a", Arc::new(Together(tokio::sync::Barrier::new(100)))).await.unwrap();
    let answered = Mutex::new(0);
    let requests = (0..100).map(|_| async {
        bus.request("a", "x".into(), TIMEOUT).await.unwrap();
        *answered.lock().unwrap() += 1;
    });
    futures::future::join_all(requests).await;
    assert_eq!(*answered.lock().unwrap(), 100);
}

/// Runs the suite over a transport.
macro_rules! holds_for {
    ($name:ident, $bus:expr) => {
        mod $name {
            use super::*;

            $crate::suite::holds_for!(@ $bus,
                a_request_reaches_the_one_that_serves_and_is_not_delivered_when_nobody_does,
                silence_ends_at_the_deadline_and_not_before,
                a_receiver_works_on_when_the_sender_gives_up,
                a_question_takes_those_that_answer_and_does_not_wait_for_the_silent,
                a_question_that_nobody_serves_has_no_answers,
                subscribers_get_what_is_published_after_they_came_in_its_order,
                publishing_does_not_wait_for_a_slow_subscriber,
                messages_of_the_limit_pass_and_larger_ones_are_refused,
                many_requests_are_carried_out_at_once,
            );
        }
    };
    (@ $bus:expr, $($test:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let bus = $bus.await;
                suite::$test(bus).await;
            }
        )+
    };
}

pub(crate) use holds_for;
