//! The name server of VMs, over UDP and TCP: answers for names of its own ([`internal`]) and
//! forwards other queries to the host's name servers ([`upstream`]). Remembers nothing, so that
//! what the host's resolver answers now is what VMs get now.

pub(crate) mod asked;
#[cfg(test)]
mod fuzz;
mod internal;
#[cfg(test)]
mod tests;
mod upstream;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use asked::Asked;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tracing::{info, warn};

use crate::{DNS, Names, namespace::Namespace};

const PORT: u16 = 53;
/// Queries being forwarded and TCP connections, at once; beyond it they are dropped, and asked
/// again by who asked.
const CONCURRENT: usize = 512;
/// Patience with a client on TCP.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before another try to listen: a server that was just killed may still have the address.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

struct Server {
    names: Option<Arc<dyn Names>>,
    /// Empty for those of the host.
    upstreams: Vec<IpAddr>,
    permits: Arc<Semaphore>,
    asked: Arc<Asked>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// What becomes of a query.
#[derive(Debug)]
enum Outcome {
    /// It is none.
    Ignored,
    /// It has its answer.
    Answered(Vec<u8>),
    /// Others must be asked; the query, read.
    Forwarded(Message),
}

/// Answers until dropped. Without `names` there are none below `internal.` and `flycast.`.
pub(crate) async fn serve(
    namespace: Arc<Namespace>,
    names: Option<Arc<dyn Names>>,
    upstreams: Vec<IpAddr>,
    asked: Arc<Asked>,
) {
    let server = Arc::new(Server::new(names, upstreams, asked));
    let mut told = false;
    loop {
        match listen(namespace.clone()).await {
            Ok((udp, tcp)) => {
                info!(address = %DNS, "DNS for VMs ready");
                let end = tokio::select! {
                    end = server.serve_udp(Arc::new(udp)) => end,
                    end = server.serve_tcp(tcp) => end,
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

impl Server {
    fn new(names: Option<Arc<dyn Names>>, upstreams: Vec<IpAddr>, asked: Arc<Asked>) -> Self {
        Self { names, upstreams, permits: Arc::new(Semaphore::new(CONCURRENT)), asked }
    }

    async fn serve_udp(self: &Arc<Self>, socket: Arc<UdpSocket>) -> io::Error {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier answer met a closed port: tells nothing about the socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            let question = buffer.get(..length).unwrap_or_default();
            let message = match self.take(question, client.ip(), Transport::Udp) {
                Outcome::Ignored => continue,
                Outcome::Answered(answer) => {
                    // Who asked may be gone by now.
                    let _ = socket.send_to(&answer, client).await;
                    continue;
                }
                Outcome::Forwarded(message) => message,
            };
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { continue };
            let (server, socket, question) = (self.clone(), socket.clone(), question.to_vec());
            tokio::spawn(async move {
                if let Some(answer) = server.forward(&question, &message, Transport::Udp).await {
                    let _ = socket.send_to(&answer, client).await;
                }
                drop(permit);
            });
        }
    }

    async fn serve_tcp(self: &Arc<Self>, listener: TcpListener) -> io::Error {
        loop {
            let (mut stream, client) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => return error,
            };
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                while let Ok(Ok(question)) = timeout(CLIENT_TIMEOUT, read_framed(&mut stream)).await
                {
                    let answer = match server.take(&question, client.ip(), Transport::Tcp) {
                        Outcome::Ignored => None,
                        Outcome::Answered(answer) => Some(answer),
                        Outcome::Forwarded(message) => {
                            server.forward(&question, &message, Transport::Tcp).await
                        }
                    };
                    let Some(answer) = answer else { break };
                    let written = timeout(CLIENT_TIMEOUT, write_framed(&mut stream, &answer)).await;
                    if !matches!(written, Ok(Ok(()))) {
                        break;
                    }
                }
                drop(permit);
            });
        }
    }

    /// Answers a query, unless others must be asked.
    fn take(&self, question: &[u8], client: IpAddr, transport: Transport) -> Outcome {
        let Ok(message) = Message::from_vec(question) else { return Outcome::Ignored };
        if message.metadata.message_type != MessageType::Query {
            return Outcome::Ignored;
        }
        let query = match &*message.queries {
            [query] if message.metadata.op_code == OpCode::Query => query,
            _ => return Outcome::answered(refusal(&message, ResponseCode::NotImp)),
        };
        let is_forwarded = !internal::is_internal(query.name());
        self.asked.count(client, is_forwarded);
        if is_forwarded {
            return Outcome::Forwarded(message);
        }
        let names = self.names.as_deref();
        Outcome::answered(internal::answer(names, client, &message, query, transport))
    }

    /// Has others answer a query.
    async fn forward(
        &self,
        question: &[u8],
        message: &Message,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        match upstream::ask(&self.upstreams, question, transport).await {
            Some(answer) => Some(answer),
            None => refusal(message, ResponseCode::ServFail),
        }
    }
}

impl Outcome {
    fn answered(answer: Option<Vec<u8>>) -> Self {
        answer.map_or(Self::Ignored, Self::Answered)
    }
}

fn refusal(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    response(question, code).to_vec().ok()
}

/// What answers to a message begin with. One with thousands of queries, which is refused, has the
/// first of them in its answer, so that this fits into a datagram.
fn response(question: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().take(1).cloned());
    answer
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
