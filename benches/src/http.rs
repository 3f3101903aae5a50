//! HTTP over connections that stay open, made inside a [`Place`].

use std::{
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;

use crate::place::Place;

/// Nothing that is measured takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

type Connection = SendRequest<Full<Bytes>>;

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Http {
    place: Arc<Place>,
    address: SocketAddr,
    token: Arc<str>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Http {
    /// A client that shows `token`; connects to nothing yet.
    pub fn new(place: Arc<Place>, address: SocketAddr, token: &str) -> Self {
        Self { place, address, token: token.into(), idle: Arc::default() }
    }

    /// Sends a request and gives the body of its answer.
    ///
    /// # Errors
    /// When the answer is an error, or none comes.
    pub async fn send(&self, method: Method, path: &str, body: &str) -> Result<Bytes> {
        let shown = format!("{method} {path}");
        let exchange = tokio::time::timeout(DEADLINE, self.exchange(method, path, body)).await;
        let (status, body) = exchange
            .with_context(|| format!("{shown}: no answer"))?
            .with_context(|| shown.clone())?;
        if !status.is_success() {
            bail!("{shown}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// Opens connections ahead, so that so many requests at once wait for none.
    ///
    /// # Errors
    /// When one can't be made.
    pub async fn connect(&self, count: usize) -> Result<()> {
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(self.open().await?);
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(connections);
        Ok(())
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<(StatusCode, Bytes)> {
        let mut connection = loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                // The server closes those that were idle for long.
                Some(connection) if connection.is_closed() => {}
                Some(connection) => break connection,
                None => break self.open().await?,
            }
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
        connection.ready().await?;
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok((status, body))
    }

    async fn open(&self) -> Result<Connection> {
        let stream = connect_in(&self.place, self.address)?;
        let (connection, work) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // The request that is under way tells of the error.
            let _ = work.await;
        });
        Ok(connection)
    }
}

/// A connection to an address of a place.
///
/// # Errors
/// When nothing listens there.
pub fn connect_in(place: &Place, address: SocketAddr) -> Result<tokio::net::TcpStream> {
    let connected =
        place.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)))?;
    let stream = connected.with_context(|| format!("connecting to {address}"))?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}
