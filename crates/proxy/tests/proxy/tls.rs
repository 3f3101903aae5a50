//! TLS that ends at the proxy.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc};

use caddis_proxy::*;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::*;

/// Takes any certificate whose signatures are right.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn shake(
    stream: TcpStream,
    name: &str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    in_time("the handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn connect(
    address: SocketAddr,
    name: &str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    shake(TcpStream::connect(address).await.unwrap(), name, alpn).await
}

async fn exchange(mut stream: TlsStream<TcpStream>, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = in_time("the answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn https_is_served_with_a_certificate_of_the_apps_name() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = connect(world.https, "app.localhost", &[]).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let name = b"app.localhost";
    assert!(certificate.windows(name.len()).any(|window| window == name));
    let answer = exchange(stream, &get("/")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for expected in ["x-forwarded-proto: https", "x-forwarded-ssl: on", "fly-forwarded-port: 443"] {
        assert!(answer.contains(expected), "{expected}");
    }
}

#[tokio::test]
async fn http_2_is_negotiated_first() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = connect(world.https, "app.localhost", &["http/1.1", "h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://app.localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(in_time("it", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_name_that_no_app_has_gets_an_alert_instead_of_a_certificate() {
    let world = World::new();
    let error = connect(world.https, "other.localhost", &[]).await.unwrap_err();
    let alert = error.get_ref().and_then(|error| error.downcast_ref());
    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName);
    assert_eq!(alert, Some(&expected), "{error}");
}

#[tokio::test]
async fn smuggling_is_refused_inside_tls_too() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let stream = connect(world.https, "app.localhost", &[]).await.unwrap();
    let answer = exchange(stream, "GET / HTTP/1.1\nHost: app.localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

async fn echo() -> Upstream {
    Upstream::serve(|mut stream, _| async move {
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
    })
    .await
}

fn tls_route(upstream: &Upstream, handlers: Handlers, number: u16) -> MachineRoute {
    let mut route = started("a1", upstream.address);
    route.services = vec![service(vec![port(number, handlers)])];
    route
}

#[tokio::test]
async fn tls_without_http_ends_and_bytes_go_on() {
    let upstream = echo().await;
    let world = World::new();
    let handlers = Handlers { tls: true, ..Handlers::default() };
    world.apply(vec![tls_route(&upstream, handlers, 443)]);
    let stream = connect(world.https, "app.localhost", &[]).await.unwrap();
    assert_eq!(exchange(stream, "hello").await, "hello");
}

#[tokio::test]
async fn versions_of_tls_can_be_limited() {
    let upstream = echo().await;
    let world = World::new();
    let mut route = tls_route(&upstream, Handlers { tls: true, ..Handlers::default() }, 443);
    route.services[0].ports[0].tls.versions = vec![TlsVersion::V12];
    world.apply(vec![route]);
    let stream = connect(world.https, "app.localhost", &[]).await.unwrap();
    let version = stream.get_ref().1.protocol_version();
    assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_2));
}

#[tokio::test]
async fn postgres_clients_negotiate_before_the_handshake() {
    let upstream = echo().await;
    let world = World::new();
    let handlers = Handlers { pg_tls: true, ..Handlers::default() };
    let address = crate::tcp::own(&world, tls_route(&upstream, handlers, 5432));
    let mut stream = TcpStream::connect(address).await.unwrap();
    for (request, expected) in [(80_877_104_u32, b'N'), (80_877_103, b'S')] {
        stream.write_u32(8).await.unwrap();
        stream.write_u32(request).await.unwrap();
        assert_eq!(in_time("the answer", stream.read_u8()).await.unwrap(), expected);
    }
    let stream = shake(stream, "anything.example", &[]).await.unwrap();
    assert_eq!(exchange(stream, "hello").await, "hello");
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_u32(8).await.unwrap();
    plain.write_u32(196_608).await.unwrap();
    assert!(in_time("the end", plain.read_u8()).await.is_err());
    eventually("the error", || world.journal.codes() == [ErrorCode::PT04]).await;
}

/// Shakes hands from addresses of the host itself in turn, until that is refused with a code.
async fn shake_until(code: ErrorCode, sources: &[[u8; 4]]) {
    let upstream = Upstream::http("one").await;
    let world = World::with(|config| {
        config.handshake_limit = HandshakeLimit {
            per_second: NonZeroU32::MIN,
            burst: NonZeroU32::MIN,
            limits_loopback: true,
        };
    });
    let mut route = started("a1", upstream.address);
    let handlers = Handlers { tls: true, ..Handlers::default() };
    route.services = vec![service(vec![port(5432, handlers)])];
    let address = crate::tcp::own(&world, route);
    let mut results = Vec::new();
    for source in sources.iter().cycle() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((*source, 0))).unwrap();
        let stream = socket.connect(address).await.unwrap();
        results.push(shake(stream, "app.localhost", &[]).await.is_ok());
        // One is given back each second, which a busy host may need for a handshake.
        if results.last() == Some(&false) || results.len() > 100 {
            break;
        }
    }
    assert_eq!((results.first(), results.last()), (Some(&true), Some(&false)));
    eventually("the error", || world.journal.codes() == [code]).await;
}

#[tokio::test]
async fn handshakes_of_one_range_of_addresses_are_limited() {
    shake_until(ErrorCode::PT01, &[[127, 0, 1, 1], [127, 0, 1, 2]]).await;
}

#[tokio::test]
async fn handshakes_for_one_name_are_limited() {
    let sources: Vec<_> = (0..100).map(|range| [127, 0, range, 1]).collect();
    shake_until(ErrorCode::PT02, &sources).await;
}
