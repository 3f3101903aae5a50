//! The prober over loopback sockets, against servers that behave badly.

use std::net::SocketAddr;

use caddis_api::{
    MachineId,
    config::{Check, CheckHeader, CheckProtocol},
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use super::*;

fn probe(address: SocketAddr, kind: CheckType, check: Check) -> Probe {
    Probe { machine: MachineId::random(), name: "web".to_owned(), address, kind, check }
}

async fn get(address: SocketAddr, check: Check) -> Finding {
    NetworkProber::default().probe(&probe(address, CheckType::Http, check)).await
}

/// Reads the head of a request.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers each request with this, and what it was asked.
async fn server(answer: impl Into<Vec<u8>>) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (answer, (asked, requests)) = (answer.into(), mpsc::unbounded_channel());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, asked) = (answer.clone(), asked.clone());
            tokio::spawn(async move {
                asked.send(head(&mut stream).await).unwrap();
                // The prober need not read all of it.
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    (address, requests)
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// An address where nobody listens.
async fn unused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_port_that_accepts_passes_and_one_that_refuses_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let prober = NetworkProber::default();
    let found = prober.probe(&probe(address, CheckType::Tcp, Check::default())).await;
    assert_eq!((found.passed, found.output()), (true, format!("TCP connect {address}: Success")));

    let nobody = unused().await;
    for (kind, what) in [
        (CheckType::Tcp, format!("TCP connect {nobody}")),
        (CheckType::Http, format!("HTTP GET http://{nobody}/")),
    ] {
        let found = prober.probe(&probe(nobody, kind, Check::default())).await;
        let expected = (false, format!("{what}: connection refused"));
        assert_eq!((found.passed, found.output()), expected);
    }
}

#[tokio::test]
async fn only_a_status_of_2xx_passes_and_redirects_are_not_followed() {
    let (elsewhere, mut followed) = server(response("200 OK", "")).await;
    let redirect = format!("302 Found\r\nLocation: http://{elsewhere}/");
    for (status, shown, passes) in [
        ("200 OK", "200 OK", true),
        ("204 No Content", "204 No Content", true),
        ("299 Odd", "299", true),
        (&redirect, "302 Found", false),
        ("404 Not Found", "404 Not Found", false),
        ("500 Internal Server Error", "500 Internal Server Error", false),
    ] {
        let (address, _requests) = server(response(status, "")).await;
        let found = get(address, Check::default()).await;
        let expected = (passes, format!("HTTP GET http://{address}/: {shown}"));
        assert_eq!((found.passed, found.output()), expected);
    }
    assert!(followed.try_recv().is_err(), "nobody asked there");
}

#[tokio::test]
async fn the_request_is_as_configured() {
    let (address, mut requests) = server(response("200 OK", "fine\n")).await;
    let header = |name: &str, values: &[&str]| CheckHeader {
        name: name.to_owned(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    let check = Check {
        method: Some("head".to_owned()),
        path: Some("/health?full=1".to_owned()),
        headers: Some(vec![header("X-Check", &["a", "b"]), header("Host", &["example.com"])]),
        ..Check::default()
    };
    let found = get(address, check).await;
    assert!(found.passed, "{found:?}");
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("HEAD /health?full=1 HTTP/1.1\r\n"), "{request}");
    let lower = request.to_ascii_lowercase();
    for line in ["x-check: a", "x-check: b", "host: example.com", "connection: close"] {
        assert!(lower.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
    }

    let found = get(address, Check::default()).await;
    assert_eq!(found.body, "fine\n");
    assert!(requests.recv().await.unwrap().contains(&format!("host: {address}\r\n")));
}

#[tokio::test]
async fn what_is_no_http_fails_with_the_reason() {
    let (address, _requests) = server("SSH-2.0-OpenSSH_9.2\r\n").await;
    let found = get(address, Check::default()).await;
    assert!(!found.passed && found.summary.contains("no valid HTTP response"), "{found:?}");

    let (address, _requests) = server("").await;
    let found = get(address, Check::default()).await;
    assert!(!found.passed && found.summary.contains("no valid HTTP response"), "{found:?}");
}

#[tokio::test]
async fn of_a_huge_response_only_the_beginning_is_read() {
    // Its server would go on for ever.
    let (asked, mut endless) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        asked.send(()).unwrap();
    });
    let found = get(address, Check::default()).await;
    assert!(found.passed && found.body.len() <= LONGEST_BODY + 4, "{found:?}");
    assert!(endless.recv().await.is_some(), "the connection is closed");

    let headers = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(4 * HEADERS));
    let (address, _requests) = server(headers).await;
    assert!(!get(address, Check::default()).await.passed, "headers are bounded");
}

#[tokio::test]
async fn a_body_that_does_not_end_says_nothing_against_its_status() {
    let (mut until_end, _kept) = tokio::sync::oneshot::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome").await.unwrap();
        until_end.closed().await;
    });
    let found = get(address, Check::default()).await;
    assert_eq!((found.passed, &*found.body), (true, "some"));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_waited_for_until_who_asks_gives_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, mut streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        accepted.send(stream).unwrap();
    });
    let asked = get(address, Check::default());
    let mut stream = tokio::select! {
        found = asked => panic!("{found:?}"),
        stream = streams.recv() => stream.unwrap(),
    };
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
}

/// A server with a certificate of its own for this name.
async fn tls_server(name: &str) -> SocketAddr {
    certified_server(name).await.0
}

/// The same, and its certificate.
async fn certified_server(name: &str) -> (SocketAddr, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
                head(&mut stream).await;
                stream.write_all(response("200 OK", &name).as_bytes()).await.unwrap();
            });
        }
    });
    (address, cert.der().clone())
}

#[tokio::test]
async fn a_trusted_certificate_passes_for_its_name_alone() {
    let (address, certificate) = certified_server("app.example").await;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut prober = NetworkProber::default();
    let config = ClientConfig::builder_with_provider(prober.provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    prober.verifying = OnceCell::new_with(Some(Arc::new(config)));
    // Without a name it is the address that must be in the certificate.
    for (name, passes) in [(Some("app.example"), true), (Some("b.example"), false), (None, false)] {
        let check = Check {
            protocol: Some(CheckProtocol::Https),
            tls_server_name: name.map(str::to_owned),
            ..Check::default()
        };
        let found = prober.probe(&probe(address, CheckType::Http, check)).await;
        assert_eq!(found.passed, passes, "{name:?}: {found:?}");
        assert_eq!(found.summary.contains("certificate not valid for name"), !passes, "{found:?}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_passes_only_where_it_is_not_verified() {
    let address = tls_server("app.example").await;
    let https = |skip: Option<bool>, name: Option<&str>| Check {
        protocol: Some(CheckProtocol::Https),
        tls_skip_verify: skip,
        tls_server_name: name.map(str::to_owned),
        ..Check::default()
    };
    let found = get(address, https(None, Some("app.example"))).await;
    assert!(!found.passed && found.summary.contains("certificate"), "{found:?}");

    for (name, told) in [(None, "none"), (Some("app.example"), "app.example")] {
        let found = get(address, https(Some(true), name)).await;
        assert_eq!((found.passed, &*found.body), (true, told), "{found:?}");
    }

    let found = get(address, https(Some(true), Some("not a name"))).await;
    assert!(!found.passed && found.summary.contains("invalid tls_server_name"), "{found:?}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(response("400 Bad Request", "").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let found = get(plain, https(Some(true), None)).await;
    assert!(!found.passed && found.summary.contains("TLS"), "{found:?}");
}
