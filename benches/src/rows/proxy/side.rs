//! A server, and before it the proxy and nginx, in a network of their own.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    load::{
        Listening,
        generator::Measured,
        nginx::{self, Nginx},
        process::{Ourselves, generate},
        proxy::ProxyListening,
    },
    place::Place,
};

/// Bytes of the server's answer.
const BODY: usize = 1024;

/// How something is asked.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    connections: usize,
    tls: bool,
    per_second: Option<u32>,
}

impl Load {
    /// As fast as answers come.
    pub const fn new(connections: usize, tls: bool) -> Self {
        Self { connections, tls, per_second: None }
    }

    /// At a rate.
    pub const fn per_second(self, rate: u32) -> Self {
        Self { per_second: Some(rate), ..self }
    }
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The server itself, which knows no TLS.
    Server,
    /// The proxy.
    Proxy,
    /// nginx.
    Nginx,
}

/// See the module's text.
#[derive(Debug)]
pub struct Sides {
    place: Place,
    /// Of the proxy.
    apps: usize,
    nginx: Nginx,
    proxy: Ourselves,
    listening: ProxyListening,
    server: Listening,
    _server: Ourselves,
}

impl Sides {
    /// Starts them; the proxy has so many apps. What they keep is called `name`.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(work: &Path, name: &str, apps: usize) -> Result<Self> {
        let place = Place::network()?;
        let (_server, server) = Ourselves::bare(&place, &[b'.'; BODY], true).await?;
        let nginx = Nginx::start(&place, &work.join(format!("{name}-nginx")), server.port).await?;
        let log = File::create(work.join(format!("{name}.log")))?;
        let (proxy, listening) = proxy(&place, apps, server.port, log).await?;
        Ok(Self { place, apps, nginx, proxy, listening, server, _server })
    }

    /// Where they are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// nginx.
    pub fn nginx(&self) -> &Nginx {
        &self.nginx
    }

    /// The proxy, and its port for HTTP.
    pub fn proxy(&self) -> (&Ourselves, u16) {
        (&self.proxy, self.listening.http)
    }

    /// Asks one of them for so long.
    ///
    /// # Errors
    /// When an answer is an error.
    pub async fn ask(&self, side: Side, load: &Load, milliseconds: u32) -> Result<Measured> {
        let port = match (side, load.tls) {
            (Side::Server, _) => self.server.port,
            (Side::Proxy, false) => self.listening.http,
            (Side::Proxy, true) => self.listening.https,
            (Side::Nginx, false) => nginx::HTTP,
            (Side::Nginx, true) => nginx::HTTPS,
        };
        let target = Target { port, path: &self.server.path, apps: self.apps };
        let what = format!("{side:?}, {load:?}");
        ask(&self.place, &what, &target, load, milliseconds).await
    }
}

/// Starts a proxy with so many apps.
///
/// # Errors
/// When it does not start.
pub async fn proxy(
    place: &Place,
    apps: usize,
    upstream: u16,
    log: File,
) -> Result<(Ourselves, ProxyListening)> {
    let (apps, upstream) = (apps.to_string(), upstream.to_string());
    let words = ["proxy", "--apps", &apps, "--upstream", &upstream];
    let mut proxy = Ourselves::start(place, &words, log.into())?;
    let listening = proxy.announced().await.context("the proxy did not start")?;
    Ok((proxy, listening))
}

/// What is asked.
pub struct Target<'a> {
    /// On 127.0.0.1.
    pub port: u16,
    /// What to get.
    pub path: &'a str,
    /// How many apps there are.
    pub apps: usize,
}

/// Asks for so long; `what` says whom, for the error.
///
/// # Errors
/// When an answer is an error.
pub async fn ask(
    place: &Place,
    what: &str,
    target: &Target<'_>,
    load: &Load,
    milliseconds: u32,
) -> Result<Measured> {
    let mut words = vec!["--path".to_owned(), target.path.to_owned()];
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    add("--port", target.port.to_string());
    add("--apps", target.apps.to_string());
    add("--connections", load.connections.to_string());
    add("--milliseconds", milliseconds.to_string());
    if let Some(rate) = load.per_second {
        add("--per-second", rate.to_string());
    }
    if load.tls {
        words.push("--tls".to_owned());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    generate(place, what, &words).await
}
