//! TCP between a peer with wireguard-go and an address behind the server's WireGuard, both ways, in
//! two network namespaces; in the same rounds with wireguard-go at the server's end, too.
//!
//! ```text
//!  namespace "peer"                       namespace of the place
//!  iperf3 ─ to-ours ─┐             ┌─ UDP ─ the server's WireGuard ─ peers ─┐
//!                    ├─ out ═ veth ┤                                        ├─ lo: iperf3 -s
//!  iperf3 ─ to-go ───┘             └─ UDP ─ wireguard-go ─ go ──────────────┘
//! ```

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use caddis_testkit::run;
use caddis_wireguard::{Device, Peer, Peers, PrivateKey, Server, create_device, open_socket};
use serde_json::Value;

use crate::{
    bench::Bench,
    place::Place,
    progress::{self, progress},
    report::Promise,
};

const ROUNDS: usize = 7;
const TIMEOUT: Duration = Duration::from_secs(30);

/// One end at the server, with the peer's end towards it.
struct Side {
    key: &'static str,
    text: &'static str,
    /// The peer's interface.
    interface: &'static str,
    port: u16,
    /// First part of all addresses within the tunnel.
    network: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        key: "ours",
        text: "the server's WireGuard",
        interface: "to-ours",
        port: 51820,
        network: "fdaa:1:2",
    },
    Side { key: "go", text: "wireguard-go", interface: "to-go", port: 51821, network: "fdaa:1:3" },
];

/// From the peer's side.
const DIRECTIONS: [(&str, &str, &[&str]); 2] =
    [("up", "peer to machine", &[]), ("down", "machine to peer", &["--reverse"])];

/// Measures the row.
///
/// # Errors
/// When wireguard-go, wg or iperf3 is missing, or nothing gets through.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    progress("wireguard: setting up two tunnels");
    let place = Place::network()?;
    shell(&place, SETUP.to_owned())?;
    let mut programs = Vec::new();
    let key = PrivateKey::random();
    let _server = serve(&place, &key, &mut programs)?;
    programs.push(start(&place, &["iperf3", "--server"])?);
    let peer = &["ip", "netns", "exec", "peer"];
    let seconds = if bench.quick() { "1" } else { "3" };
    for side in &SIDES {
        reach(&place, &[&peer[..], &iperf(side, "1")].concat())?;
    }
    let rounds = bench.repeat(ROUNDS, 2);
    let mut measured = [[(); 2]; 2].map(|sides| sides.map(|()| Vec::new()));
    for round in 0..rounds {
        progress::run("wireguard", round, rounds);
        for (side, measured) in SIDES.iter().zip(&mut measured) {
            for ((_, _, more), measured) in DIRECTIONS.iter().zip(measured) {
                let words = [&peer[..], &iperf(side, seconds), *more].concat();
                measured.push(rate(&inside(&place, &words)?)?);
            }
        }
    }
    let [ours, go] = &measured;
    for (at, (key, text, _)) in DIRECTIONS.iter().enumerate() {
        for (side, measured) in SIDES.iter().zip(&measured) {
            let line = format!("TCP through {}, {text}", side.text);
            let key = format!("wireguard-{}-{key}", side.key);
            bench.report.samples(&key, &line, "Mbit/s", Promise::None, &measured[at]);
        }
        let line = format!("the server's WireGuard against wireguard-go, {text}");
        let key = format!("wireguard-{key}");
        bench.report.ratio(&key, &line, Promise::AtLeast(1.0), &ours[at], &go[at]);
    }
    Ok(())
}

/// Two namespaces with a link. The sockets of wireguard-go are found by names, which are the same
/// in all network namespaces.
const SETUP: &str = "
mount -t tmpfs tmpfs /run
ip netns add peer
ip link add in type veth peer name out netns peer
ip address add 10.9.0.1/24 dev in
ip link set in up
ip -n peer address add 10.9.0.2/24 dev out
ip -n peer link set out up
ip -n peer link set lo up
";

/// Starts both ends of both tunnels.
fn serve(place: &Place, key: &PrivateKey, programs: &mut Vec<Program>) -> Result<Server> {
    let [ours, go] = &SIDES;
    let peers = Arc::new(Peers::new(key));
    let (shared, port) = (peers.clone(), ours.port);
    let server = place.run(move || {
        let device = create_device("peers")?;
        let socket = open_socket(([0, 0, 0, 0, 0, 0, 0, 0], port).into())?;
        anyhow::Ok(Server::start(shared, socket, device)?)
    })??;
    let segments = Device::MOST_SEGMENTS;
    shell(place, format!("ip link set peers gso_max_segs {segments}; {}", ends("peers", ours)))?;
    let of_peer = connect(place, ours, key, programs)?;
    let network = format!("{}::/48", ours.network).parse()?;
    let address = format!("{}::8:2", ours.network).parse()?;
    peers.replace(vec![Peer { key: of_peer.public(), address, network }])?;

    let key = PrivateKey::random();
    programs.push(start(place, &["wireguard-go", "--foreground", "go"])?);
    let of_peer = connect(place, go, &key, programs)?;
    let peer = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = \
         {}::8:2/128\n",
        *key.to_text(),
        go.port,
        of_peer.public(),
        go.network
    );
    configure(place, "", "go", &peer)?;
    shell(place, ends("go", go))?;
    Ok(server)
}

/// The server's end of the inner network.
fn ends(interface: &str, side: &Side) -> String {
    let network = side.network;
    format!(
        "ip link set {interface} mtu 1420 up; ip address add {network}:9::2/128 dev lo nodad; ip \
         route add {network}::/80 dev {interface}"
    )
}

/// The peer's end, towards a server with this key.
fn connect(
    place: &Place,
    side: &Side,
    server: &PrivateKey,
    programs: &mut Vec<Program>,
) -> Result<PrivateKey> {
    let Side { interface, network, port, .. } = side;
    let words = ["ip", "netns", "exec", "peer", "wireguard-go", "--foreground", interface];
    programs.push(start(place, &words)?);
    let key = PrivateKey::random();
    let text = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {network}::/48\n\
         Endpoint = 10.9.0.1:{port}\n",
        *key.to_text(),
        server.public()
    );
    configure(place, "ip netns exec peer ", interface, &text)?;
    shell(
        place,
        format!(
            "ip -n peer address add {network}::8:2/128 dev {interface} nodad; ip -n peer link set \
             {interface} mtu 1420 up; ip -n peer route add {network}::/48 dev {interface}"
        ),
    )?;
    Ok(key)
}

/// Hands wireguard-go its configuration, once it takes it.
fn configure(place: &Place, within: &str, interface: &str, text: &str) -> Result<()> {
    let file = format!("/run/{interface}.conf");
    let (at, text) = (file.clone(), text.to_owned());
    place.run(move || std::fs::write(at, text))?.context("writing a configuration")?;
    let script = format!("{within}wg setconf {interface} {file}");
    reach(place, &["sh", "-c", &script]).map(drop)
}

fn iperf(side: &Side, seconds: &'static str) -> Vec<&'static str> {
    let machine = match side.key {
        "ours" => "fdaa:1:2:9::2",
        _ => "fdaa:1:3:9::2",
    };
    vec!["iperf3", "--client", machine, "--time", seconds, "--json"]
}

/// Mbit per second that arrived.
fn rate(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("reading what iperf3 says")?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("iperf3: {}", report["error"]))? / 1e6)
}

/// A program that ends when this is dropped, or the thread of the place.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(place: &Place, words: &[&str]) -> Result<Program> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Program(place.run(move || command.spawn())?.with_context(|| format!("starting {words:?}"))?))
}

fn inside(place: &Place, words: &[&str]) -> Result<String> {
    let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    place.run(move || run(words))?
}

/// Runs a program until it succeeds: others have to begin.
fn reach(place: &Place, words: &[&str]) -> Result<String> {
    let began = Instant::now();
    loop {
        match inside(place, words) {
            Err(_) if began.elapsed() < TIMEOUT => std::thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

fn shell(place: &Place, script: String) -> Result<()> {
    place.run(move || run(["sh", "-ec", &script]))?.map(drop)
}
