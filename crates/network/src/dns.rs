//! The name server of VMs: forwards questions to the host's own, over UDP and TCP. Remembers
//! nothing, so that what the host's resolver answers now is what VMs get now.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{DNS, namespace::Namespace};

const PORT: u16 = 53;
/// Questions under way at once; beyond it they are dropped, and asked again by who asked.
const CONCURRENT: usize = 512;
/// Patience with one upstream.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Patience with a client on TCP.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before another try to listen: a server that was just killed may still have the address.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// Names that are ours to answer and must not be asked of others.
const INTERNAL: &str = "internal.";

struct Forwarder {
    upstreams: Vec<IpAddr>,
    permits: Arc<Semaphore>,
}

/// Answers until dropped.
pub(crate) async fn serve(namespace: Arc<Namespace>, upstreams: Vec<IpAddr>) {
    let forwarder =
        Arc::new(Forwarder { upstreams, permits: Arc::new(Semaphore::new(CONCURRENT)) });
    let mut told = false;
    loop {
        match listen(namespace.clone()).await {
            Ok((udp, tcp)) => {
                info!(address = %DNS, "DNS for VMs ready");
                let end = tokio::select! {
                    end = serve_udp(forwarder.clone(), Arc::new(udp)) => end,
                    end = serve_tcp(forwarder.clone(), tcp) => end,
                };
                warn!(error = %end, "DNS for VMs failed, restarting it");
            }
            Err(error) if !told => {
                told = true;
                warn!(%error, address = %DNS, "can't serve DNS for VMs yet");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// Sockets of the VMs' namespace. What is asked of others goes out from the host's own.
async fn listen(namespace: Arc<Namespace>) -> io::Result<(UdpSocket, TcpListener)> {
    let address = SocketAddr::from((DNS, PORT));
    let open = move || {
        let (udp, tcp) =
            (std::net::UdpSocket::bind(address)?, std::net::TcpListener::bind(address)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        io::Result::Ok((udp, tcp))
    };
    let (udp, tcp) = tokio::task::spawn_blocking(move || namespace.run(open)).await???;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

async fn serve_udp(forwarder: Arc<Forwarder>, socket: Arc<UdpSocket>) -> io::Error {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer met a closed port: tells nothing about the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return error,
        };
        let Ok(permit) = forwarder.permits.clone().try_acquire_owned() else { continue };
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (forwarder, socket) = (forwarder.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = forwarder.answer(&question, Transport::Udp).await {
                // Who asked may be gone by now.
                let _ = socket.send_to(&answer, client).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(forwarder: Arc<Forwarder>, listener: TcpListener) -> io::Error {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return error,
        };
        let Ok(permit) = forwarder.permits.clone().try_acquire_owned() else { continue };
        let forwarder = forwarder.clone();
        tokio::spawn(async move {
            while let Ok(Ok(question)) = timeout(CLIENT_TIMEOUT, read_framed(&mut stream)).await {
                let Some(answer) = forwarder.answer(&question, Transport::Tcp).await else { break };
                if !matches!(
                    timeout(CLIENT_TIMEOUT, write_framed(&mut stream, &answer)).await,
                    Ok(Ok(()))
                ) {
                    break;
                }
            }
            drop(permit);
        });
    }
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

impl Forwarder {
    /// The answer to a question; `None` for what is no question.
    async fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let message = Message::from_vec(question).ok()?;
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let is_query = message.metadata.op_code == OpCode::Query && message.queries.len() == 1;
        if !is_query {
            return refusal(&message, ResponseCode::NotImp);
        }
        let internal = message.queries.iter().any(|query| {
            let name = query.name().to_ascii().to_ascii_lowercase();
            name == INTERNAL || name.ends_with(&format!(".{INTERNAL}"))
        });
        if internal {
            return refusal(&message, ResponseCode::NXDomain);
        }
        for upstream in self.upstreams().await {
            let upstream = SocketAddr::from((upstream, PORT));
            let asked = match transport {
                Transport::Udp => timeout(UPSTREAM_TIMEOUT, ask_udp(upstream, question)).await,
                Transport::Tcp => timeout(UPSTREAM_TIMEOUT, ask_tcp(upstream, question)).await,
            };
            match asked {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%upstream, %error, "name server did not answer"),
                Err(_) => debug!(%upstream, "name server did not answer in time"),
            }
        }
        refusal(&message, ResponseCode::ServFail)
    }

    async fn upstreams(&self) -> Vec<IpAddr> {
        if !self.upstreams.is_empty() {
            return self.upstreams.clone();
        }
        // Read anew each time: it changes with the host's own network, and is in memory.
        let text = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
        nameservers(&text)
    }
}

/// The name servers of a resolv.conf.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.filter(|server| *server != IpAddr::from(DNS)).collect()
}

fn refusal(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    answer.to_vec().ok()
}

/// Asks over a socket, and so from a port, of its own: an answer can't be forged without guessing
/// it.
async fn ask_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { "0.0.0.0:0".parse() } else { "[::]:0".parse() }
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if answer.get(..2) == question.get(..2) && answer.len() >= 12 {
            return Ok(answer.to_vec());
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream).await
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length =
        u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };

    use super::*;

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::AAAA));
        message.to_vec().unwrap()
    }

    fn forwarder() -> Forwarder {
        // Port 53 of a loopback address where nobody listens.
        let upstreams = vec!["127.250.250.250".parse().unwrap()];
        Forwarder { upstreams, permits: Arc::new(Semaphore::new(1)) }
    }

    #[tokio::test]
    async fn internal_names_do_not_leave_the_host_and_dead_upstreams_are_a_failure() {
        for (name, code) in [
            ("app.internal.", ResponseCode::NXDomain),
            ("INTERNAL.", ResponseCode::NXDomain),
            ("example.com.", ResponseCode::ServFail),
        ] {
            let answer = forwarder().answer(&question(name), Transport::Udp).await.unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(
                (answer.metadata.id, answer.metadata.response_code, answer.queries.len()),
                (77, code, 1)
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_question_gets_no_answer() {
        for junk in [&b""[..], b"x", &[0xff; 40]] {
            assert_eq!(forwarder().answer(junk, Transport::Udp).await, None);
        }
        let answer = forwarder().answer(&question("app.internal."), Transport::Udp).await.unwrap();
        assert_eq!(
            forwarder().answer(&answer, Transport::Udp).await,
            None,
            "an answer is no question"
        );
    }

    #[test]
    fn resolv_conf_is_read_without_ourselves() {
        let text = "# x\nsearch a\nnameserver 127.0.0.53\nnameserver fdaa::3\nnameserver\n \
                    nameserver 2001:db8::1\n";
        assert_eq!(
            nameservers(text),
            ["127.0.0.53".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]
        );
    }
}
