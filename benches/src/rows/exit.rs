//! A program's end until a client that waits for it sees `stopped`. The guest's clock plays no
//! part: the program holds a TCP connection to us and ends when it has read a byte, its kernel then
//! closes the connection, and that is when our clock begins to run. The second line begins it when
//! the byte is sent, so it has the way into the guest in it too.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bench::Bench,
    http::connect_in,
    machine::{Machine, config},
    place::Place,
    progress,
    report::Promise,
    server::{IMAGE, Pool},
};

const PORT: u16 = 7000;
/// The machine's own program becomes the one that ends: no shell is left to notice.
const PROGRAM: &str = "echo ready; exec nc -l -p 7000 -e head -c 1";
/// How often a connection is tried before the program must listen.
const ATTEMPTS: usize = 500;

/// Measures the row.
///
/// # Errors
/// When the program can't be reached, or a machine does not stop.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let machine = Machine::prepare(server.http(), &config(IMAGE, PROGRAM)).await?;
    let address =
        machine.get().await?["private_ipv4"].as_str().context("no private_ipv4")?.parse()?;
    let runs = bench.repeat(20, 3);
    let (mut from_close, mut from_byte) = (Vec::new(), Vec::new());
    for run in 0..runs {
        progress::run("exit", run, runs);
        let mark = machine.log_end().await?;
        server.before_start();
        machine.post("start", "").await?;
        machine.first_output(mark).await?;
        machine.wait("started").await?;
        let mut stream = connect(server.place(), SocketAddr::new(address, PORT)).await?;
        let waiting = machine.clone();
        let waiter =
            tokio::spawn(async move { waiting.wait("stopped").await.map(|()| Instant::now()) });
        // The wait is on its way before the program ends.
        tokio::task::yield_now().await;
        let sent = Instant::now();
        stream.write_all(b"x").await?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await?;
        let closed = Instant::now();
        ensure!(said == b"x", "the program did not read the byte, it said {said:?}");
        let seen = waiter.await??;
        from_close.push(seen.saturating_duration_since(closed).as_secs_f64() * 1000.0);
        from_byte.push(seen.duration_since(sent).as_secs_f64() * 1000.0);
    }
    let report = &mut bench.report;
    let text = "exit of the program (its connection closes) until a waiting client sees `stopped`";
    report.samples("exit", text, "ms", Promise::None, &from_close);
    let text = "the same from the sending of the byte that ends it";
    report.samples("exit-from-byte", text, "ms", Promise::None, &from_byte);
    Ok(())
}

/// Nothing tells from outside when a program begins to listen.
async fn connect(place: &Place, address: SocketAddr) -> Result<TcpStream> {
    let mut attempt = 0;
    loop {
        match connect_in(place, address) {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
