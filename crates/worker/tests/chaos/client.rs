//! A client that does legal and illegal things at random, and notes what it was answered.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

use crate::{
    guards::{Change, Lease, Update},
    history::History,
    registers::{Operation, Time},
    site::{Answer, MACHINES, Site, path},
};

/// Metadata keys that are checked.
pub const KEYS: [&str; 2] = ["r0", "r1"];
/// Seconds. All leases have it, so that a refresh never shortens one.
const TTL: u64 = 2;

/// Machines that half of all requests are about.
const FAVOURITES: usize = 5;

/// Where a machine is, or may be.
#[derive(Clone, Default)]
enum Place {
    #[default]
    Empty,
    /// Someone makes one.
    Coming,
    There(String),
}

/// What all clients share.
pub struct World {
    pub site: Site,
    pub history: Mutex<History>,
    places: Vec<Mutex<Place>>,
    clock: AtomicU64,
}

impl World {
    pub fn new(site: Site, places: usize) -> Self {
        let places = (0..places).map(|_| Mutex::default()).collect();
        Self { site, history: Mutex::default(), places, clock: AtomicU64::new(1) }
    }

    fn tick(&self) -> Time {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// All machines are gone.
    pub fn clear(&self) {
        for place in &self.places {
            *place.lock().unwrap() = Place::Empty;
        }
        *self.history.lock().unwrap() = History::default();
    }
}

/// An answer and when it came.
struct Call {
    answer: Answer,
    begun: Time,
    ended: Time,
    ended_ms: u64,
}

impl Call {
    fn status(&self) -> u16 {
        self.answer.status.as_u16()
    }

    fn succeeded(&self) -> bool {
        self.answer.status.is_success()
    }

    /// Nobody knows what came of it.
    fn is_unknown(&self) -> bool {
        self.status() == 504
    }
}

pub struct Client<'a> {
    world: &'a World,
    random: StdRng,
    name: String,
    written: u64,
    nonces: HashMap<String, String>,
}

impl<'a> Client<'a> {
    pub fn new(world: &'a World, seed: u64, round: usize, number: usize) -> Self {
        let random = StdRng::seed_from_u64(seed ^ ((round as u64) << 32) ^ number as u64);
        Self {
            world,
            random,
            name: format!("{round}.{number}"),
            written: 0,
            nonces: HashMap::new(),
        }
    }

    /// So many random things, one after the other.
    pub async fn run(mut self, count: usize) {
        for _ in 0..count {
            self.one().await;
        }
    }

    async fn call(
        &self,
        what: &'static str,
        method: &str,
        path: &str,
        nonce: Option<&str>,
        body: &Value,
    ) -> Call {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call_raw(what, method, path, nonce, &body).await
    }

    async fn call_raw(
        &self,
        what: &'static str,
        method: &str,
        path: &str,
        nonce: Option<&str>,
        body: &str,
    ) -> Call {
        let begun = self.world.tick();
        let answer = self.world.site.send(method, path, nonce, body).await;
        let ended = self.world.tick();
        let status = answer.status.as_u16();
        // What the reference documents, and 504 for a worker that does not answer.
        let documented = [200, 201, 204, 400, 404, 405, 408, 409, 412, 422, 504].contains(&status);
        assert!(documented, "{what}: {method} {path} {body}: {status} {}", answer.body);
        self.world.history.lock().unwrap().answered(what, status);
        let ended_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
        Call { answer, begun, ended, ended_ms }
    }

    async fn one(&mut self) {
        // Some are everyone's favourites.
        let favourite = self.random.random_bool(0.5);
        let place = self
            .random
            .random_range(0..if favourite { FAVOURITES } else { self.world.places.len() });
        let machine = {
            let mut there = self.world.places[place].lock().unwrap();
            match there.clone() {
                Place::Empty => {
                    *there = Place::Coming;
                    None
                }
                Place::Coming => Some("0123456789abcd".to_owned()),
                Place::There(machine) => Some(machine),
            }
        };
        let Some(machine) = machine else { return self.create(place).await };
        match self.random.random_range(0..100) {
            0..8 => self.change(&machine, "start", "POST", "/start", Value::Null).await,
            8..15 => {
                let body = if self.random.random_bool(0.5) {
                    json!({ "timeout": "50ms" })
                } else {
                    Value::Null
                };
                self.change(&machine, "stop", "POST", "/stop", body).await;
            }
            15..20 => {
                self.change(&machine, "restart", "POST", "/restart?timeout=50ms", Value::Null).await
            }
            20..26 => self.change(&machine, "suspend", "POST", "/suspend", Value::Null).await,
            26..28 => self.change(&machine, "cordon", "POST", "/cordon", Value::Null).await,
            28..30 => self.change(&machine, "uncordon", "POST", "/uncordon", Value::Null).await,
            30..33 => self.destroy(place, &machine).await,
            33..42 => self.update(&machine).await,
            42..55 => self.write(&machine).await,
            55..75 => self.read(&machine).await,
            75..80 => self.acquire(&machine).await,
            80..86 => self.release(&machine).await,
            86..88 => self.wait(&machine).await,
            88..91 => self.signal(&machine).await,
            91..95 => self.look(&machine).await,
            _ => self.nonsense(&machine).await,
        }
    }

    fn value(&mut self) -> String {
        self.written += 1;
        format!("{}.{}", self.name, self.written)
    }

    fn config(&mut self) -> Value {
        let argv = *[
            &["sleep", "inf"][..],
            &["sleep", "inf"],
            &["sleep", "1"],
            &["ignore-signals"],
            &["exit", "1"],
        ]
        .choose(&mut self.random)
        .unwrap();
        // What ends by itself and is always restarted never comes to rest.
        let ends = ["exit", "1"] == argv || ["sleep", "1"] == argv;
        let policy = *["no", "on-failure", if ends { "no" } else { "always" }]
            .choose(&mut self.random)
            .unwrap();
        json!({
            "image": "image",
            "init": { "exec": argv },
            "restart": { "policy": policy, "max_retries": 2 },
            "auto_destroy": self.random.random_bool(0.05),
            "stop_config": { "timeout": "100ms" },
        })
    }

    /// Mine, if I have one; but I may forget it, or show another.
    fn nonce(&mut self, machine: &str) -> Option<String> {
        match self.random.random_range(0..10) {
            0 => None,
            1 => Some("0123456789ab".to_owned()),
            _ => self.nonces.get(machine).cloned(),
        }
    }

    async fn create(&mut self, place: usize) {
        let mut body =
            json!({ "config": self.config(), "skip_launch": self.random.random_bool(0.2) });
        if self.random.random_bool(0.1) {
            body["lease_ttl"] = json!(TTL);
        }
        let call = self.call("create", "POST", MACHINES, None, &body).await;
        if !call.succeeded() {
            *self.world.places[place].lock().unwrap() = Place::Empty;
            return;
        }
        let machine = call.answer.body["id"].as_str().unwrap().to_owned();
        if let Some(nonce) = call.answer.body["nonce"].as_str() {
            self.leased(&machine, nonce.to_owned(), &call);
        }
        *self.world.places[place].lock().unwrap() = Place::There(machine);
    }

    fn leased(&mut self, machine: &str, nonce: String, call: &Call) {
        // Granted between the request and its answer, and rounded down to the second.
        let expires_ms = (call.ended_ms / 1000 + TTL) * 1000;
        let expires_ms = call.answer.body["data"]["expires_at"]
            .as_u64()
            .map_or(expires_ms - 2000, |at| at * 1000);
        let lease = Lease { nonce: nonce.clone(), from: call.ended, until: Time::MAX, expires_ms };
        self.world.history.lock().unwrap().lease(machine, lease);
        self.nonces.insert(machine.to_owned(), nonce);
    }

    /// A change that a lease may stand in the way of.
    async fn change(
        &mut self,
        machine: &str,
        what: &'static str,
        method: &str,
        tail: &str,
        body: Value,
    ) {
        let nonce = self.nonce(machine);
        let call = self.call(what, method, &(path(machine) + tail), nonce.as_deref(), &body).await;
        self.changed(machine, what, nonce, &call);
    }

    fn changed(&self, machine: &str, what: &'static str, nonce: Option<String>, call: &Call) {
        if call.succeeded() {
            let change = Change {
                what,
                begun: call.begun,
                ended: call.ended,
                ended_ms: call.ended_ms,
                nonce,
            };
            self.world.history.lock().unwrap().change(machine, change);
        }
    }

    async fn destroy(&mut self, place: usize, machine: &str) {
        let nonce = self.nonce(machine);
        let tail = if self.random.random_bool(0.7) { "?force=true" } else { "" };
        let call = self
            .call("destroy", "DELETE", &(path(machine) + tail), nonce.as_deref(), &Value::Null)
            .await;
        if call.succeeded() || call.is_unknown() {
            self.world.history.lock().unwrap().leases_end(machine, None, call.begun);
        }
        if call.succeeded() {
            let mut place = self.world.places[place].lock().unwrap();
            if matches!(&*place, Place::There(there) if there == machine) {
                *place = Place::Empty;
            }
        }
    }

    async fn update(&mut self, machine: &str) {
        let nonce = self.nonce(machine);
        let mut expected = None;
        if self.random.random_bool(0.6) {
            let call = self.call("get", "GET", &path(machine), None, &Value::Null).await;
            expected = call.answer.body["version"].as_str().map(str::to_owned);
        }
        let values = KEYS.map(|key| (key, self.value()));
        let mut config = self.config();
        config["metadata"] =
            values.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let mut body = json!({ "config": config, "skip_launch": self.random.random_bool(0.2) });
        if let Some(expected) = &expected {
            body["current_version"] = json!(expected);
        }
        let call = self.call("update", "POST", &path(machine), nonce.as_deref(), &body).await;
        self.changed(machine, "update", nonce, &call);
        self.wrote(machine, values.to_vec(), &call);
        if call.succeeded() {
            let version = call.answer.body["version"].as_str().unwrap().to_owned();
            let update = Update { begun: call.begun, ended: call.ended, expected, version };
            self.world.history.lock().unwrap().update(machine, update);
        }
    }

    fn wrote(&self, machine: &str, values: Vec<(&'static str, String)>, call: &Call) {
        if !call.succeeded() && !call.is_unknown() {
            return;
        }
        let ended = if call.succeeded() { call.ended } else { Time::MAX };
        for (key, value) in values {
            let write = Operation { begun: call.begun, ended, value: Some(value), write: true };
            self.world.history.lock().unwrap().register(machine, key, write);
        }
    }

    async fn write(&mut self, machine: &str) {
        if self.random.random_bool(0.3) {
            let values = KEYS.map(|key| (key, self.value()));
            let metadata: Value =
                values.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
            let body = json!({ "metadata": metadata });
            let call =
                self.call("patch", "PATCH", &(path(machine) + "/metadata"), None, &body).await;
            return self.wrote(machine, values.to_vec(), &call);
        }
        let (key, value) = (*KEYS.choose(&mut self.random).unwrap(), self.value());
        let tail = format!("/metadata/{key}");
        let call = self
            .call("set", "POST", &(path(machine) + &tail), None, &json!({ "value": value }))
            .await;
        self.wrote(machine, vec![(key, value)], &call);
    }

    fn saw(&self, machine: &str, key: &'static str, value: Option<&Value>, call: &Call) {
        let value = value.map(|value| value.as_str().unwrap().to_owned());
        let read = Operation { begun: call.begun, ended: call.ended, value, write: false };
        self.world.history.lock().unwrap().register(machine, key, read);
    }

    async fn read(&mut self, machine: &str) {
        let there = path(machine);
        match self.random.random_range(0..10) {
            0..6 => {
                let key = *KEYS.choose(&mut self.random).unwrap();
                let call = self
                    .call("read", "GET", &format!("{there}/metadata/{key}"), None, &Value::Null)
                    .await;
                let missing = call.answer.body["error"]
                    .as_str()
                    .is_some_and(|error| error.starts_with("metadata key"));
                if call.succeeded() || missing {
                    self.saw(machine, key, call.answer.body.get("value"), &call);
                }
            }
            6..8 => {
                let call = self
                    .call("read all", "GET", &format!("{there}/metadata"), None, &Value::Null)
                    .await;
                for key in KEYS.into_iter().filter(|_| call.succeeded()) {
                    self.saw(machine, key, call.answer.body.get(key), &call);
                }
            }
            8 => {
                let call = self.call("get", "GET", &there, None, &Value::Null).await;
                for key in KEYS.into_iter().filter(|_| call.succeeded()) {
                    self.saw(machine, key, call.answer.body["config"]["metadata"].get(key), &call);
                }
            }
            _ => {
                let call = self.call("list", "GET", MACHINES, None, &Value::Null).await;
                for listed in call.answer.body.as_array().into_iter().flatten() {
                    for key in KEYS {
                        let machine = listed["id"].as_str().unwrap();
                        self.saw(machine, key, listed["config"]["metadata"].get(key), &call);
                    }
                }
            }
        }
    }

    async fn acquire(&mut self, machine: &str) {
        let nonce = self.nonce(machine);
        let body = json!({ "ttl": TTL });
        let call =
            self.call("lease", "POST", &(path(machine) + "/lease"), nonce.as_deref(), &body).await;
        self.changed(machine, "lease", nonce, &call);
        if call.succeeded() {
            let granted = call.answer.body["data"]["nonce"].as_str().unwrap().to_owned();
            self.leased(machine, granted, &call);
        }
    }

    /// Mostly one that I hold.
    async fn release(&mut self, machine: &str) {
        let mut held: Vec<_> = self.nonces.keys().cloned().collect();
        held.sort();
        let machine = held.choose(&mut self.random).map_or(machine, String::as_str);
        let nonce = self.nonce(machine);
        let call = self
            .call("release", "DELETE", &(path(machine) + "/lease"), nonce.as_deref(), &Value::Null)
            .await;
        if let Some(nonce) = nonce.filter(|_| call.succeeded() || call.is_unknown()) {
            self.world.history.lock().unwrap().leases_end(machine, Some(&nonce), call.begun);
            self.nonces.remove(machine);
        }
    }

    async fn wait(&mut self, machine: &str) {
        let state =
            *["started", "stopped", "settled", "destroyed"].choose(&mut self.random).unwrap();
        let tail = format!("/wait?state={state}&timeout=1");
        self.call("wait", "GET", &(path(machine) + &tail), None, &Value::Null).await;
    }

    async fn signal(&mut self, machine: &str) {
        let signal = *["SIGTERM", "SIGUSR1", "SIGKILL"].choose(&mut self.random).unwrap();
        self.call(
            "signal",
            "POST",
            &(path(machine) + "/signal"),
            None,
            &json!({ "signal": signal }),
        )
        .await;
    }

    async fn look(&mut self, machine: &str) {
        let tail = *["/events", "/versions", "/lease", "/ps", "?include_leases=true"]
            .choose(&mut self.random)
            .unwrap();
        let call = self.call("look", "GET", &(path(machine) + tail), None, &Value::Null).await;
        if tail == "/events" && call.succeeded() {
            let ids: Vec<_> = call
                .answer
                .body
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["id"].as_str())
                .collect();
            assert!(ids.windows(2).all(|pair| pair[0] > pair[1]), "events of {machine}: {ids:?}");
        }
    }

    async fn nonsense(&mut self, machine: &str) {
        let there = path(machine);
        let unknown = path("0123456789abcd");
        let (method, path, body) = match self.random.random_range(0..8) {
            0 => ("POST", there, "{"),
            1 => ("POST", MACHINES.to_owned(), "[1, 2]"),
            2 => ("POST", there + "/metadata/r0", "\u{0}"),
            3 => ("GET", path("no-machine"), ""),
            4 => ("POST", unknown + "/start", ""),
            5 => ("DELETE", there + "/start", ""),
            6 => ("POST", there + "/signal", r#"{ "signal": "SIGNOTHING" }"#),
            _ => ("POST", there + "/lease?ttl=-1", ""),
        };
        let call = self.call_raw("nonsense", method, &path, None, body).await;
        assert!(!call.succeeded(), "{method} {path} {body:?} was taken: {}", call.answer.body);
    }
}
