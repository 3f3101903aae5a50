//! The least that answers the same: an axum handler that returns bytes it has.

use anyhow::Result;
use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
};

use super::{Listening, announce};

const PATH: &str = "/v1/apps/{app}/machines/{id}";

/// Serves until standard input ends; its first line is the body.
///
/// # Errors
/// When it can't listen.
pub async fn serve() -> Result<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let mut body = String::new();
    input.read_line(&mut body).await?;
    let body = Bytes::from(body.trim_end().to_owned());
    let answer = move || {
        let body = body.clone();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    announce(&Listening { port, path: String::new(), token: String::new() })?;
    let ended = async move {
        let _ = tokio::io::copy(&mut input, &mut tokio::io::sink()).await;
    };
    let router = Router::new().route(PATH, get(answer));
    let no_delay = |stream: &mut tokio::net::TcpStream| drop(stream.set_nodelay(true));
    let listener = axum::serve::ListenerExt::tap_io(listener, no_delay);
    tokio::select! {
        served = axum::serve(listener, router) => {
            Ok(served?)
        }
        () = ended => Ok(()),
    }
}
