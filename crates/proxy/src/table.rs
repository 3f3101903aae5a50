//! Which app a name or an address means. Reads take no lock; changing one app touches nothing of
//! the others.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{AppName, AppRoutes, app::App, machine::Clock};

/// All apps. See the module's text.
#[derive(Debug)]
pub struct Table {
    clock: Clock,
    apps: papaya::HashMap<AppName, Arc<App>>,
    /// Changes are made one at a time.
    change: Mutex<()>,
}

impl Table {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, apps: papaya::HashMap::new(), change: Mutex::new(()) }
    }

    /// Replaces an app's routes, or forgets it. Gives the app, whose routes are empty if it was
    /// forgotten.
    pub(crate) fn apply(&self, name: &AppName, routes: Option<AppRoutes>) -> Option<Arc<App>> {
        let _one_at_a_time = self.change.lock();
        let apps = self.apps.pin();
        match routes {
            Some(routes) => {
                let app = match apps.get(name) {
                    Some(app) => app.clone(),
                    None => App::new(name.clone(), self.clock),
                };
                app.replace(routes);
                apps.insert(name.clone(), app.clone());
                Some(app)
            }
            None => {
                let app = apps.remove(name)?.clone();
                app.replace(AppRoutes::default());
                Some(app)
            }
        }
    }

    /// An app by its name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<App>> {
        self.apps.pin().get(name).cloned()
    }

    /// All apps, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<App>> {
        self.apps.pin().values().cloned().collect()
    }

    /// The app that a host name means: its first label, below `domain`. Case, a final dot and a
    /// port do not matter.
    pub(crate) fn by_host(&self, host: &str, domain: &str) -> Option<Arc<App>> {
        let name = host_name(host);
        let (label, rest) = name.split_once('.')?;
        if !rest.eq_ignore_ascii_case(domain) {
            return None;
        }
        if label.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.get(&label.to_ascii_lowercase())
        } else {
            self.get(label)
        }
    }

    /// How many apps are routed.
    pub fn len(&self) -> usize {
        self.apps.len()
    }

    /// Whether no app is routed.
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty()
    }
}

/// A `Host` without its port and final dot.
pub(crate) fn host_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_are_found_by_the_first_label_of_their_host() {
        let table = Table::new(Clock::start());
        table.apply(&"hello".into(), Some(AppRoutes::default()));
        let name = |host| table.by_host(host, "example.com").map(|app| app.name.to_string());
        for host in ["hello.example.com", "HELLO.Example.com:8080", "hello.example.com."] {
            assert_eq!(name(host).as_deref(), Some("hello"), "{host}");
        }
        for host in ["", "hello", "hello.example.org", "a.hello.example.com", "x.example.com", ":"]
        {
            assert_eq!(name(host), None, "{host}");
        }
        table.apply(&"hello".into(), None);
        assert!(table.by_host("hello.example.com", "example.com").is_none());
        assert!(table.is_empty());
    }
}
