//! Streams of real machines: long ones, cut ones, and what a restart of the server makes of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, images};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Response, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use crate::{
    leftovers::{ended_and_cleaned, traces},
    stand::{APP, Stand},
    traffic::{client, get, http, starts, until_answered, until_put_to_sleep, web_service},
};

/// Sends back each message of a WebSocket, the message `late` after five seconds only. In Perl,
/// which Debian always has.
const ECHO: &str = r#"
    use IO::Socket::INET;
    $SIG{CHLD} = 'IGNORE';
    my $server = IO::Socket::INET->new(LocalPort => 80, Listen => 8, ReuseAddr => 1) or die $!;
    while (1) {
        my $peer = $server->accept or next;
        next if fork;
        $peer->autoflush;
        my $key;
        while (($_ = <$peer>) =~ /\S/) { $key = $1 if /^sec-websocket-key: (\S+)/i }
        my $digest = `printf %s ${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11 | sha1sum`;
        my $accept = pack 'u', pack 'H40', $digest;
        # From the alphabet of uuencode to that of base64, without the length.
        $accept =~ tr|` -_|AA-Za-z0-9+/|;
        $accept = substr($accept, 1, 27) . '=';
        print $peer "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n",
            "Upgrade: websocket\r\nSec-WebSocket-Accept: $accept\r\n\r\n";
        while (read($peer, my $head, 2) == 2) {
            my ($kind, $length) = unpack 'CC', $head;
            $length &= 127;
            read $peer, my $mask, 4;
            read $peer, my $data, $length;
            $data ^= substr $mask x 32, 0, $length;
            sleep 5 if $data eq 'late';
            print $peer pack('CC', $kind, $length), $data;
            last if ($kind & 15) == 8;
        }
        exit;
    }
"#;

type Socket = WebSocketStream<TcpStream>;

async fn websocket() -> Result<Socket> {
    let connected = async {
        let stream = TcpStream::connect("127.0.0.1:8080").await?;
        let (socket, _) = client_async(format!("ws://{APP}.localhost:8080/"), stream).await?;
        anyhow::Ok(socket)
    };
    tokio::time::timeout(DEADLINE, connected).await.context("no WebSocket in time")?
}

/// The next message. None at the end.
async fn next(socket: &mut Socket) -> Result<Option<Message>> {
    let next = tokio::time::timeout(DEADLINE, socket.next()).await.context("no message in time")?;
    Ok(next.transpose()?)
}

async fn echoes(socket: &mut Socket, message: Message) -> Result<()> {
    socket.send(message.clone()).await?;
    let answer = next(socket).await?;
    ensure!(answer.as_ref() == Some(&message), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_websocket_keeps_its_machine_awake_until_it_is_closed() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let mut config = web_service("suspend", json!({ "idle_timeout": "1s" }));
    config["image"] = json!(stand.registry.push(&images::debian()?, "debian:nginx")?);
    config["init"] = json!({ "exec": ["perl", "-e", ECHO] });
    let machine = stand.machine(config).await?;
    machine.wait("started").await?;
    let mut socket = websocket().await?;
    echoes(&mut socket, Message::text("hello")).await?;
    echoes(&mut socket, Message::binary(vec![0, 1, 255])).await?;
    let so_far = starts(&machine).await?.len();
    // Nothing passes for five times the idle timeout.
    echoes(&mut socket, Message::text("late")).await?;
    assert_eq!(machine.get().await?["state"], "started");
    assert_eq!(starts(&machine).await?.len(), so_far, "it was awake all the time");
    socket.close(None).await?;
    let answer = next(&mut socket).await?;
    ensure!(matches!(answer, Some(Message::Close(_))), "{answer:?}");
    ensure!(next(&mut socket).await?.is_none(), "the other side closes the connection, too");
    drop(socket);
    until_put_to_sleep(&machine, "suspend").await?;

    // Another one wakes it, and is told when the server ends.
    let mut socket = websocket().await?;
    echoes(&mut socket, Message::text("hello")).await?;
    assert_eq!(starts(&machine).await?[0]["source"], "proxy");
    let told = async {
        let told = next(&mut socket).await?;
        // Its answer is sent by reading on. The program answers that one with a close frame, too.
        while let Ok(Some(Message::Close(_))) = next(&mut socket).await {}
        anyhow::Ok(told)
    };
    let (ended, told) = tokio::join!(stand.server.terminate(), told);
    ensure!(ended?.success());
    let told = told?;
    let Some(Message::Close(Some(frame))) = told else { anyhow::bail!("{told:?}") };
    assert_eq!(frame.code, CloseCode::Away);
    Ok(())
}

/// Answers with two lines, or does with the second one what the path says.
const TWO_LINES: &str = "cat >/answer <<'END'
read -r method path version
while read -r field && [ ${#field} -gt 1 ]; do :; done
printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 8\\r\\nConnection: close\\r\\n\\r\\none\\n'
case $path in
/die) kill -9 $(cat /main) ;;
/slow) sleep 3; echo two ;;
/never) sleep 1000000 ;;
*) echo two ;;
esac
END
echo $$ >/main; exec nc -ll -p 80 -e /bin/sh /answer";
const BOTH: &str = "one\ntwo\n";

/// An answer whose first line is there.
async fn begun(path: &str) -> Result<Response> {
    let mut answer = client()?.get(http() + path).send().await?;
    let first = answer.chunk().await?.context("no first line")?;
    ensure!(&first[..] == b"one\n", "{first:?}");
    Ok(answer)
}

/// Waits for a line of a source in the machine's log that has all of this.
async fn told(stand: &Stand<'_>, machine: &Machine, source: &str, parts: &[&str]) -> Result<()> {
    let path = format!("/api/v1/apps/{APP}/logs?instance={}", machine.id());
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = stand.server.api().get(&path).await?.ok()?;
        let found = page["data"].as_array().into_iter().flatten().any(|entry| {
            let line = &entry["attributes"];
            let text = line["message"].as_str().unwrap_or_default();
            line["meta"]["event"]["provider"] == source
                && parts.iter().all(|part| text.contains(part))
        });
        if found {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no line of {source} with {parts:?}: {page:#}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_answer_that_a_dying_program_leaves_is_cut_and_the_next_request_starts_it() -> Result<()>
{
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script(TWO_LINES, web_service("off", json!({}))).await?;
    machine.wait("started").await?;
    until_answered(BOTH).await?;
    for round in 1..=2 {
        let mut cut = begun("die").await?;
        let request = cut.headers()["fly-request-id"].to_str()?.to_owned();
        let rest = cut.chunk().await;
        ensure!(rest.is_err(), "what was cut looks whole: {rest:?}");
        told(&stand, &machine, "proxy", &["[PC03]", machine.id(), &request]).await?;
        machine.wait("stopped").await?;
        told(&stand, &machine, "runner", &["exit code 137"]).await?;
        let (status, body) = get(&http()).await?;
        ensure!(status == StatusCode::OK && body == BOTH, "{status} {body}");
        let starts = starts(&machine).await?;
        ensure!(starts.len() == 1 + round && starts[0]["source"] == "proxy", "{starts:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_listen_is_a_clear_error_until_it_does() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let script = format!("until [ -e /go ]; do usleep 100000; done; {TWO_LINES}");
    let machine = stand.script(&script, web_service("off", json!({}))).await?;
    machine.wait("started").await?;
    let answer = client()?.get(http()).send().await?;
    let request = answer.headers()["fly-request-id"].to_str()?.to_owned();
    let (status, body) = (answer.status(), answer.text().await?);
    ensure!(status == StatusCode::GATEWAY_TIMEOUT, "{status} {body}");
    ensure!(body.starts_with("PM03: ") && body.contains(&request), "{body}");
    told(&stand, &machine, "proxy", &["[PM03]", "0.0.0.0:80", &request]).await?;
    let (status, body) = get(&http()).await?;
    ensure!(status == StatusCode::BAD_GATEWAY && body.starts_with("PC01: "), "{status} {body}");

    machine.shell("touch /go").await?;
    until_answered(BOTH).await?;
    ensure!(starts(&machine).await?.len() == 1, "it was left alone");
    Ok(())
}

async fn boot(machine: &Machine) -> Result<String> {
    machine.shell("cat /proc/sys/kernel/random/boot_id").await
}

#[tokio::test]
async fn a_restart_lets_streams_end_a_kill_cuts_them_and_both_leave_the_machine_as_it_was()
-> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    let mut stand = Stand::new(&host).await?;
    let config = web_service("stop", json!({ "idle_timeout": "3s" }));
    let machine = stand.script(TWO_LINES, config).await?;
    machine.wait("started").await?;
    stand.server.api().put(&machine.path("/hold"), json!({ "ttl": 600 })).await?.ok()?;
    until_answered(BOTH).await?;
    let (vm, of_boot, started) =
        (stand.server.vm(&machine)?, boot(&machine).await?, starts(&machine).await?.len());

    // SIGTERM: what is in progress ends, what is idle is closed.
    let mut idle = TcpStream::connect("127.0.0.1:8080").await?;
    idle.write_all(format!("GET / HTTP/1.1\r\nHost: {APP}.localhost\r\n\r\n").as_bytes()).await?;
    let mut seen = Vec::new();
    while !seen.ends_with(BOTH.as_bytes()) {
        let read = tokio::time::timeout(DEADLINE, idle.read_buf(&mut seen)).await??;
        ensure!(read > 0, "{:?}", String::from_utf8_lossy(&seen));
    }
    let slow = begun("slow").await?;
    let (ended, rest) = tokio::join!(stand.server.terminate(), slow.text());
    ensure!(ended?.success());
    assert_eq!(rest?, "two\n");
    seen.clear();
    tokio::time::timeout(DEADLINE, idle.read_to_end(&mut seen)).await??;
    ensure!(seen.is_empty(), "{:?}", String::from_utf8_lossy(&seen));
    stand.server.launch().await?;
    assert_eq!(get(&http()).await?, (StatusCode::OK, BOTH.to_owned()));

    // SIGKILL: the client's connection ends, and nothing of it stays that keeps the machine awake.
    let mut cut = begun("never").await?;
    stand.server.kill().await?;
    ensure!(cut.chunk().await.is_err(), "what was cut looks whole");
    stand.server.launch().await?;
    assert_eq!(get(&http()).await?, (StatusCode::OK, BOTH.to_owned()));
    assert_eq!((stand.server.vm(&machine)?, boot(&machine).await?), (vm, of_boot));
    assert_eq!(starts(&machine).await?.len(), started, "nothing happened to the machine");
    stand.server.api().delete(&machine.path("/hold")).await?.ok()?;
    until_put_to_sleep(&machine, "stop").await?;

    // SIGKILL while a request waits for its start, which comes true once.
    let asleep = machine.newest_event().await?;
    let waiting = tokio::spawn(async {
        let url = http();
        get(&url).await
    });
    let deadline = Instant::now() + DEADLINE;
    while machine.newest_event().await? == asleep {
        ensure!(Instant::now() < deadline, "a request starts nothing");
    }
    stand.server.kill().await?;
    ensure!(waiting.await?.is_err(), "somebody answered for a server that was killed");
    stand.server.launch().await?;
    assert_eq!(get(&http()).await?, (StatusCode::OK, BOTH.to_owned()));
    assert_eq!(starts(&machine).await?.len(), started + 1);
    until_put_to_sleep(&machine, "stop").await?;
    stand.server.until_no_vm().await?;
    assert_eq!(starts(&machine).await?.len(), started + 1);

    machine.destroy().await?;
    ended_and_cleaned(&mut stand, &before).await
}

/// Pause after which a datagram that was not answered is sent again.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends back each datagram.
const DATAGRAMS: &str = r#"
    use IO::Socket::INET;
    my $socket = IO::Socket::INET->new(LocalPort => 5435, Proto => 'udp') or die $!;
    while (defined $socket->recv(my $datagram, 2000)) { $socket->send("got $datagram") }
"#;

#[tokio::test]
async fn datagrams_reach_a_machine_and_its_replies_their_sender() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:datagrams")?;
    let ports = ["-p", "5435:5435/udp", "--", "perl", "-e", DATAGRAMS];
    let run = [&["machine", "run", &image, "-a", APP][..], &ports].concat();
    let output = stand.server.cli(&run).await?;
    let words = output.stdout.split(|c: char| c.is_whitespace() || c == '/');
    let mut addresses = words.filter_map(|word| word.parse::<std::net::SocketAddr>().ok());
    let address = addresses.find(|address| address.port() == 5435);
    let address = address.with_context(|| format!("no address in {output:?}"))?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(address).await?;
    let mut answer = [0; 16];
    let echoed = async {
        loop {
            // One that comes before the proxy or the program listens is lost.
            let _ = socket.send(b"datagram").await;
            match tokio::time::timeout(PAUSE, socket.recv(&mut answer)).await {
                Ok(Ok(length)) => break length,
                Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
                Err(_) => {}
            }
        }
    };
    let length = tokio::time::timeout(DEADLINE, echoed).await?;
    ensure!(&answer[..length] == b"got datagram", "{answer:?}");
    Ok(())
}
