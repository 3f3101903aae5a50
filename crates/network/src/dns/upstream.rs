//! Asking the name servers of the host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::debug;

use super::{PORT, Transport, read_framed, write_framed};
use crate::DNS;

/// Patience with one name server.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The first answer of the name servers to a query; those of the host where none are given.
pub(super) async fn ask(
    given: &[IpAddr],
    question: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    let upstreams = if given.is_empty() {
        // Read anew each time: it changes with the host's own network, and is in memory.
        nameservers(&tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default())
    } else {
        given.to_vec()
    };
    for upstream in upstreams {
        let upstream = SocketAddr::from((upstream, PORT));
        let asked = match transport {
            Transport::Udp => timeout(TIMEOUT, ask_udp(upstream, question)).await,
            Transport::Tcp => timeout(TIMEOUT, ask_tcp(upstream, question)).await,
        };
        match asked {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => debug!(%upstream, %error, "name server did not answer"),
            Err(_) => debug!(%upstream, "name server did not answer in time"),
        }
    }
    None
}

/// The name servers of a resolv.conf.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.filter(|server| *server != IpAddr::from(DNS)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
