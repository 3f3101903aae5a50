//! Connections whose bytes are passed on as they are, with or without TLS before.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    ErrorCode, PortRoute, ProxyProtocol,
    app::App,
    connection::Connection,
    core::Core,
    error::Failure,
    pool,
    select::{Preference, Search, Taken},
    websocket,
};

/// Requests that PostgreSQL clients begin with: for TLS, and for GSSAPI.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The signature of a binary PROXY header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Passes a connection's bytes on to a machine.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    core: &Arc<Core>,
    app: &Arc<App>,
    connection: &Connection,
    port: &PortRoute,
    client: S,
) {
    if let Err(failure) = splice(core, app, connection, port, client).await {
        core.report(app, &failure, None);
    }
}

async fn splice<S: AsyncRead + AsyncWrite + Unpin>(
    core: &Arc<Core>,
    app: &Arc<App>,
    connection: &Connection,
    port: &PortRoute,
    client: S,
) -> Result<(), Failure> {
    let preference = Preference::default();
    let mut search = Search::new(core, app, connection.port, &preference);
    let preface = proxy_header(port.handlers.proxy_protocol, connection.peer, connection.local);
    let (taken, machine, cut) = loop {
        let taken = match search.try_take() {
            Some(taken) => taken,
            None => tokio::select! {
                taken = search.take() => taken?,
                // Whoever left needs nothing, and it is nobody's error. That the client has said
                // all it has to say does not mean that.
                () = connection.broken() => return Ok(()),
            },
        };
        // Before it connects: what is cut meanwhile is this connection too.
        let cut = taken.permit.machine.cut_token();
        match pool::connect(core, &taken.candidate, &preface).await {
            Ok(machine) => break (taken, machine, cut),
            Err(failure) => {
                let Taken { permit, candidate } = taken;
                drop(permit);
                if !app.runs(&candidate) {
                    search.again(failure)?;
                } else if candidate.was_started_within(core.config.recently_started) {
                    tokio::select! {
                        ready = search.wait_until_ready(&candidate, failure) => ready?,
                        () = connection.broken() => return Ok(()),
                    }
                } else {
                    core.report(app, &failure, None);
                    search.exclude(&candidate, failure);
                }
            }
        }
    };
    let machine_state = &taken.permit.machine;
    let _connected = machine_state.connected();
    let tunnel = websocket::tunnel(client, machine, None, &machine_state.tally);
    let passed = tokio::select! {
        passed = tunnel => passed,
        () = cut.cancelled() => return Ok(()),
        () = core.cut.cancelled() => return Ok(()),
    };
    // Which side it was can't be told; ends like these are common.
    if let Err(error) = passed {
        tracing::debug!(%error, machine = %machine_state.id, "connection broke");
    }
    Ok(())
}

/// What a connection to a machine begins with.
pub(crate) fn proxy_header(
    version: Option<ProxyProtocol>,
    client: SocketAddr,
    server: SocketAddr,
) -> Vec<u8> {
    let source = client.ip().to_canonical();
    let target = server.ip().to_canonical();
    match (version, source, target) {
        (None, ..) => Vec::new(),
        (Some(ProxyProtocol::V1), _, _) => {
            let family = match (source, target) {
                (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
                (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
                _ => return b"PROXY UNKNOWN\r\n".to_vec(),
            };
            let (from, to) = (client.port(), server.port());
            format!("PROXY {family} {source} {target} {from} {to}\r\n").into_bytes()
        }
        (Some(ProxyProtocol::V2), source, target) => {
            let mut header = SIGNATURE.to_vec();
            let mut addresses = Vec::new();
            let family = match (source, target) {
                (IpAddr::V4(source), IpAddr::V4(target)) => {
                    addresses.extend(source.octets());
                    addresses.extend(target.octets());
                    0x11
                }
                (IpAddr::V6(source), IpAddr::V6(target)) => {
                    addresses.extend(source.octets());
                    addresses.extend(target.octets());
                    0x21
                }
                _ => 0x00,
            };
            if family != 0 {
                addresses.extend(client.port().to_be_bytes());
                addresses.extend(server.port().to_be_bytes());
            }
            header.extend([0x21, family]);
            header.extend((addresses.len() as u16).to_be_bytes());
            header.extend(addresses);
            header
        }
    }
}

/// Negotiates TLS as PostgreSQL clients do. Ends when the handshake may begin; false when the
/// client wants no TLS.
pub(crate) async fn negotiate_pg_tls<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    timeout: Duration,
) -> io::Result<bool> {
    let negotiation = async {
        loop {
            let length = client.read_u32().await?;
            let code = client.read_u32().await?;
            match (length, code) {
                (8, SSL_REQUEST) => {
                    client.write_all(b"S").await?;
                    client.flush().await?;
                    return Ok(true);
                }
                (8, GSS_REQUEST) => {
                    client.write_all(b"N").await?;
                    client.flush().await?;
                }
                _ => return Ok(false),
            }
        }
    };
    tokio::time::timeout(timeout, negotiation).await.map_err(io::Error::from)?
}

/// Why a client of `pg_tls` was turned away.
pub(crate) fn pg_tls_required() -> Failure {
    Failure::new(ErrorCode::PT04, "a PostgreSQL client connected without TLS, which the port needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers_are_those_of_the_specification() {
        let client = "192.0.2.1:4000".parse().unwrap();
        let server = "198.51.100.2:443".parse().unwrap();
        let header = |version| proxy_header(Some(version), client, server);
        assert_eq!(header(ProxyProtocol::V1), b"PROXY TCP4 192.0.2.1 198.51.100.2 4000 443\r\n");
        let mut expected = SIGNATURE.to_vec();
        expected.extend([0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0x0f, 0xa0, 1, 0xbb]);
        assert_eq!(header(ProxyProtocol::V2), expected);
        assert!(proxy_header(None, client, server).is_empty());
        let mapped = "[::ffff:192.0.2.1]:4000".parse().unwrap();
        let text = proxy_header(Some(ProxyProtocol::V1), mapped, server);
        assert!(text.starts_with(b"PROXY TCP4 192.0.2.1 "));
        let other = "[2001:db8::1]:4000".parse().unwrap();
        assert_eq!(proxy_header(Some(ProxyProtocol::V1), other, server), b"PROXY UNKNOWN\r\n");
    }
}
