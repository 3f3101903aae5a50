//! Waiting for what seldom happens beside what often does: both are asked each time the task is
//! woken, and most of what a connection waits for (its machine's end, a shutdown, timers) costs
//! locks and memory that was not touched for long.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// A future that is asked only after something has woken it.
pub(crate) struct Rare<F> {
    future: F,
    woken: Arc<Woken>,
    /// What the future is given.
    waker: Waker,
    /// The task that [`Woken`] knows.
    task: Option<Waker>,
}

struct Woken {
    is_so: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_so.store(true, Ordering::SeqCst);
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F> Rare<F> {
    pub(crate) fn new(future: F) -> Self {
        let woken = Arc::new(Woken { is_so: AtomicBool::new(true), task: Mutex::new(None) });
        let waker = Waker::from(woken.clone());
        Self { future, woken, waker, task: None }
    }

    /// Wakes no task any more, until it is asked again.
    pub(crate) fn leave_alone(&mut self) {
        if self.task.take().is_some() {
            *self.woken.task.lock() = None;
        }
    }

    /// The future itself, to be taken to another task.
    pub(crate) fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future + Unpin> Rare<F> {
    /// Asks it for nobody, if it was woken.
    pub(crate) fn peek(&mut self) -> Poll<F::Output> {
        if !self.woken.is_so.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&self.waker))
    }
}

impl<F: Future + Unpin> Future for Rare<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let task = context.waker();
        if !this.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            this.task = Some(task.clone());
            *this.woken.task.lock() = Some(task.clone());
        }
        // Only now: whoever wakes it later knows the task.
        if !this.woken.is_so.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        this.woken.is_so.store(false, Ordering::SeqCst);
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicU32, task::Poll};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_asked_after_it_was_woken_and_at_no_other_time() {
        let (rare, often, asked) = (Notify::new(), Notify::new(), AtomicU32::new(0));
        let mut notified = pin!(rare.notified());
        let inner = pin!(std::future::poll_fn(|context| {
            asked.fetch_add(1, Ordering::Relaxed);
            notified.as_mut().poll(context)
        }));
        let mut waiting = pin!(Rare::new(inner));
        for _ in 0..5 {
            often.notify_one();
            tokio::select! {
                biased;
                () = waiting.as_mut() => panic!("nothing has woken it"),
                () = often.notified() => {}
            }
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::join!(waiting.as_mut(), async { rare.notify_one() });
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_wakes_nobody_while_it_is_left_alone() {
        let rare = Arc::new(Notify::new());
        let notified = rare.clone();
        let mut waiting = Rare::new(Box::pin(async move { notified.notified().await }));
        let woken = Arc::new(Woken { is_so: AtomicBool::new(false), task: Mutex::new(None) });
        let waker = Waker::from(woken.clone());
        let context = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut waiting).poll(context).is_pending());
        waiting.leave_alone();
        rare.notify_one();
        assert!(!woken.is_so.load(Ordering::SeqCst), "it has woken the task");
        assert!(Pin::new(&mut waiting).poll(context).is_ready());
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_asked_last() {
        let rare = Arc::new(Notify::new());
        let notified = rare.clone();
        let mut waiting = Rare::new(Box::pin(async move { notified.notified().await }));
        // This task asks first, and another one waits.
        let first = std::future::poll_fn(|context| {
            Poll::Ready(Pin::new(&mut waiting).poll(context).is_ready())
        });
        assert!(!first.await);
        let other = tokio::spawn(waiting);
        tokio::task::yield_now().await;
        rare.notify_one();
        other.await.unwrap();
    }
}
