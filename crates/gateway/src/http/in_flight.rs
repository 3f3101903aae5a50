//! Requests with an idempotency key that this gateway is carrying out.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

/// Requests with a key that are being carried out.
#[derive(Default)]
pub(crate) struct InFlight(Mutex<HashMap<(String, String), Weak<Turn>>>);

pub(crate) type Turn = tokio::sync::Mutex<()>;

impl InFlight {
    /// One request of a caller after the other with the same key.
    pub fn of(&self, caller: &str, key: &str) -> Arc<Turn> {
        let mut in_flight = self.0.lock();
        in_flight.retain(|_, turn| turn.strong_count() > 0);
        let name = (caller.to_owned(), key.to_owned());
        if let Some(turn) = in_flight.get(&name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        in_flight.insert(name, Arc::downgrade(&turn));
        turn
    }
}
