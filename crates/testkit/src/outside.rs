//! The network beyond a test's host: a thread in a network namespace of its own, which answers
//! HTTP, UDP and DNS on all its addresses and keeps note of the datagrams it got.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    sync::{oneshot, watch},
};

use crate::{
    DEADLINE,
    command::{run, run_command},
    dns,
};

pub(crate) const LINK: &str = "outside";

/// One datagram that arrived at the echo service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it, as seen out there.
    pub source: SocketAddr,
    /// What it said.
    pub payload: Vec<u8>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Outside {
    thread_id: i32,
    connected: std::sync::Mutex<Option<oneshot::Sender<()>>>,
    ready: watch::Receiver<bool>,
    received: watch::Receiver<Vec<Datagram>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Outside {
    /// An address on the internet, as far as the host knows.
    pub const ADDRESS: &str = "198.51.100.1";
    /// The same in IPv6.
    pub const ADDRESS_V6: &str = "2001:db8:100::1";
    /// An address on the private network that the host is part of.
    pub const LAN_ADDRESS: &str = "192.168.77.1";
    /// Where clouds serve the metadata of the host.
    pub const METADATA_ADDRESS: &str = "169.254.169.254";
    /// The only name that [`Self::ADDRESS`] as a name server knows; all others are denied to exist.
    pub const NAME: &str = "peer.test";
    /// Port that answers HTTP with the address of who asks.
    pub const HTTP_PORT: u16 = 80;
    /// Port that sends datagrams back.
    pub const UDP_PORT: u16 = 7;

    pub(crate) fn start() -> Result<Self> {
        let (started, start) = std::sync::mpsc::channel();
        let (connected, connection) = oneshot::channel();
        let (is_ready, ready) = watch::channel(false);
        let (note, received) = watch::channel(Vec::new());
        let (end, ended) = oneshot::channel();
        let body = move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace");
            let failed = entered.is_err();
            // The other end is gone only when the test is.
            let _ = started.send(entered.map(|()| nix::unistd::gettid().as_raw()));
            if failed {
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let serving = async {
                if connection.await.is_ok()
                    && let Err(error) = serve(&is_ready, &note).await
                {
                    eprintln!("the outside of a test's host failed: {error:#}");
                }
            };
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! { () = serving => {}, _ = ended => {} }
                }),
                Err(error) => eprintln!("no runtime for the outside of a test's host: {error}"),
            }
        };
        let thread = std::thread::Builder::new()
            .name("outside".into())
            .spawn(body)
            .context("starting a thread")?;
        let thread_id = start.recv().context("the outside's thread ended at once")??;
        Ok(Self {
            thread_id,
            connected: Some(connected).into(),
            ready,
            received,
            end: Some(end),
            thread: Some(thread),
        })
    }

    pub(crate) fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), self.thread_id))
    }

    /// Once the link is there.
    pub(crate) async fn connect(&self) -> Result<()> {
        let connected = self.connected.lock().map_err(|_| anyhow!("a test panicked"))?.take();
        connected
            .context("connected twice")?
            .send(())
            .map_err(|()| anyhow!("the outside is gone"))?;
        let mut ready = self.ready.clone();
        tokio::time::timeout(DEADLINE, ready.wait_for(|ready| *ready))
            .await
            .context("the outside is not ready")??;
        Ok(())
    }

    /// Runs a program out there.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let namespace = format!("--net={}", self.namespace().display());
        run_command(Command::new("nsenter").arg(namespace).arg("--").args(words))
    }

    /// Waits for a datagram with this payload, then returns all that arrived up to now.
    ///
    /// # Errors
    /// When none came in time; the error says what did.
    pub async fn datagrams_until(&self, payload: &[u8]) -> Result<Vec<Datagram>> {
        let mut received = self.received.clone();
        let arrived = received.wait_for(|all| {
            all.iter()
                .any(|datagram| datagram.payload.windows(payload.len()).any(|part| part == payload))
        });
        match tokio::time::timeout(DEADLINE, arrived).await {
            Ok(all) => Ok(all.context("the outside is gone")?.clone()),
            Err(_) => Err(anyhow!("no such datagram came, but {:?}", *self.received.borrow())),
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(ready: &watch::Sender<bool>, note: &watch::Sender<Vec<Datagram>>) -> Result<()> {
    run(["ip", "link", "set", "lo", "up"])?;
    // A new network namespace takes this from the machine it is on, which may forward.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("turning off forwarding")?;
    let addresses = [
        format!("{}/24", Outside::ADDRESS),
        format!("{}/24", Outside::LAN_ADDRESS),
        format!("{}/32", Outside::METADATA_ADDRESS),
        format!("{}/64", Outside::ADDRESS_V6),
    ];
    for address in &addresses {
        run(["ip", "address", "add", address, "dev", LINK, "nodad"])?;
    }
    run(["ip", "link", "set", LINK, "up"])?;
    let http = TcpListener::bind(("::", Outside::HTTP_PORT)).await.context("listening for HTTP")?;
    let echo =
        UdpSocket::bind(("::", Outside::UDP_PORT)).await.context("listening for datagrams")?;
    let names = UdpSocket::bind(("::", 53)).await.context("listening for DNS")?;
    ready.send_replace(true);
    tokio::try_join!(answer_http(http), answer_datagrams(echo, note), answer_names(names))?;
    Ok(())
}

async fn answer_http(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read_buf(&mut request).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
            let body = format!("you are {}\n", peer.ip().to_canonical());
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            // Who hangs up gets nothing.
            let _ = stream.write_all((head + &body).as_bytes()).await;
        });
    }
}

async fn answer_datagrams(socket: UdpSocket, note: &watch::Sender<Vec<Datagram>>) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (length, source) = socket.recv_from(&mut buffer).await?;
        let payload = buffer.get(..length).unwrap_or_default().to_vec();
        let _ = socket.send_to(&payload, source).await;
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        note.send_modify(|all| all.push(Datagram { source, payload }));
    }
}

async fn answer_names(socket: UdpSocket) -> Result<()> {
    let address: Ipv4Addr = Outside::ADDRESS.parse()?;
    let mut buffer = [0; 2048];
    loop {
        let (length, source) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) =
            dns::answer(buffer.get(..length).unwrap_or_default(), Outside::NAME, address)
        {
            let _ = socket.send_to(&answer, source).await;
        }
    }
}
