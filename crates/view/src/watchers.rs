//! Who follows the machines of an app. They are told which machine has changed and look it up
//! themselves, so that what waits for a slow one is a bounded number of ids.

use std::collections::HashMap;

use caddis_api::{AppName, MachineId};
use parking_lot::RwLock;
use tokio::sync::broadcast;

/// Changes that wait for a watcher before it has to begin anew.
const CAPACITY: usize = 256;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Watchers(RwLock<HashMap<AppName, broadcast::Sender<MachineId>>>);

impl Watchers {
    /// Ids of machines that change from now on. It ends with the app.
    pub fn subscribe(&self, app: &str) -> broadcast::Receiver<MachineId> {
        let mut watchers = self.0.write();
        let sender = watchers.entry(AppName::from_trusted(app));
        sender.or_insert_with(|| broadcast::channel(CAPACITY).0).subscribe()
    }

    /// A machine has changed or is gone.
    pub fn tell(&self, app: &str, machine: &MachineId) {
        let unwatched = {
            let watchers = self.0.read();
            watchers.get(app).is_some_and(|sender| sender.send(machine.clone()).is_err())
        };
        if unwatched {
            let mut watchers = self.0.write();
            // Another may have come between our two locks.
            if watchers.get(app).is_some_and(|sender| sender.receiver_count() == 0) {
                watchers.remove(app);
            }
        }
    }

    /// The app is gone.
    pub fn end(&self, app: &str) {
        self.0.write().remove(app);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    #[test]
    fn nothing_is_kept_for_apps_that_nobody_follows_any_more() {
        let (watchers, id) = (Watchers::default(), MachineId::from_trusted("148ed193b95389"));
        watchers.tell("a", &id);
        let mut first = watchers.subscribe("a");
        watchers.tell("b", &id);
        watchers.tell("a", &id);
        assert_eq!(first.try_recv(), Ok(id.clone()));
        assert_eq!(first.try_recv(), Err(TryRecvError::Empty));
        drop(first);
        watchers.tell("a", &id);
        assert!(watchers.0.read().is_empty());
    }

    #[test]
    fn a_slow_one_is_told_that_it_lost_something_and_all_end_with_the_app() {
        let (watchers, id) = (Watchers::default(), MachineId::from_trusted("148ed193b95389"));
        let mut slow = watchers.subscribe("a");
        for _ in 0..=CAPACITY {
            watchers.tell("a", &id);
        }
        assert!(matches!(slow.try_recv(), Err(TryRecvError::Lagged(1))));
        watchers.end("a");
        for _ in 0..CAPACITY {
            assert_eq!(slow.try_recv(), Ok(id.clone()), "what was told before is still heard");
        }
        assert_eq!(slow.try_recv(), Err(TryRecvError::Closed));
    }
}
