//! Programs that ask for the machine to stay awake.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::FakeGuest;
use crate::GuestMessage;

/// An HTTP status, and when the hold ends or why it was refused.
pub type HoldAnswer = (u16, Option<String>);

/// What programs ask for, and who takes the answers.
#[derive(Default)]
pub(super) struct Holds {
    waiting: VecDeque<(Option<u64>, oneshot::Sender<HoldAnswer>)>,
    sent: HashMap<u32, oneshot::Sender<HoldAnswer>>,
    last_id: u32,
}

impl Holds {
    /// The next request to send.
    pub fn next(&mut self) -> Option<GuestMessage> {
        let (ttl_seconds, answer) = self.waiting.pop_front()?;
        self.last_id += 1;
        self.sent.insert(self.last_id, answer);
        Some(GuestMessage::Hold { id: self.last_id, ttl_seconds })
    }

    /// The host has answered one.
    pub fn answered(&mut self, id: u32, answer: HoldAnswer) {
        if let Some(waiting) = self.sent.remove(&id) {
            // Who no longer waits has no use for it.
            let _ = waiting.send(answer);
        }
    }
}

impl FakeGuest {
    /// Has a program ask for a hold of so many seconds, or that there is none. `None` when nobody
    /// answers.
    pub async fn ask_for_hold(&self, ttl_seconds: Option<u64>) -> Option<HoldAnswer> {
        let (sender, answer) = oneshot::channel();
        self.state().holds.waiting.push_back((ttl_seconds, sender));
        self.announce();
        answer.await.ok()
    }
}
