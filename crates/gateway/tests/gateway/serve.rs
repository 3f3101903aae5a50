//! The real router over the scripted worker on a port of its own, for `scripts/schemathesis.sh`.
//! Says its address, a token and the ids of two machines of the app `a` in one line, and serves
//! until its standard input ends.
#![allow(clippy::unwrap_used, reason = "ends by panicking")]

mod support;

use tokio::{io::AsyncReadExt as _, net::TcpListener};

#[tokio::main]
async fn main() {
    let fixture = support::Fixture::new().await;
    fixture.worker.state().prompt = true;
    let id = fixture.started().await;
    let spare = fixture.machine("a", "spare").await;
    fixture.app("b").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{} {} {id} {spare}", listener.local_addr().unwrap(), fixture.token);
    let ended = async {
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    };
    fixture.gateway.serve(listener, ended).await.unwrap();
}
