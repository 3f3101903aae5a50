//! Peers are wireguard-go, set up with `wg`, as Debian has them. Each test is in network namespaces
//! of its own; "inside" is where the machines of an installation are.
//!
//! ```text
//!  peer: wg0 ─ out ══ veth ══ out ─ UDP socket  │ this thread's namespace
//!                                   peers (TUN) │ inside ─ lo: addresses of machines
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails fails its test")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use caddis_wireguard::{
    Device, Peer, Peers, PrivateKey, PublicKey, Server, create_device, open_socket,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use socket2::{Domain, Protocol, Type};

const NETWORK: &str = "fdaa:1:2::/48";
const MACHINE: &str = "fdaa:1:2:9::2";
const OTHER: &str = "fdaa:1:3:9::2";
const PORT: u16 = 51820;

/// Runs a test on a host of its own. Needs root, and Debian's wireguard-go, wireguard-tools and
/// iputils-ping.
fn on_a_host(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("these tests need root: sudo make test");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        for place in ["/run", "/tmp"] {
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        run("ip link set lo up");
        test();
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn output(command: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[track_caller]
fn run(command: &str) -> String {
    output(command).unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// Waits for a command to succeed.
#[track_caller]
fn eventually(command: &str) -> String {
    let begun = Instant::now();
    loop {
        match output(command) {
            Ok(output) => return output,
            Err(error) if begun.elapsed().as_secs() > 60 => panic!("{command}: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Does something in a namespace.
fn within<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{name}");
    let enter = move || {
        let namespace = File::open(path).unwrap();
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::spawn(enter).join().unwrap()
}

/// The server's end, with addresses of machines on the other side of it.
struct Place {
    key: PrivateKey,
    peers: Arc<Peers>,
    server: Option<Server>,
}

impl Place {
    fn new() -> Self {
        run("ip netns add inside");
        let device = within("inside", || create_device("peers").unwrap());
        run("ip -n inside link set lo up");
        let segments = Device::MOST_SEGMENTS;
        run(&format!("ip -n inside link set peers mtu 1420 gso_max_segs {segments} up"));
        run("ip -n inside addr add fdaa:1:2::3/128 dev peers");
        run("ip -n inside route add fdaa:1:2::/80 dev peers");
        for address in [MACHINE, OTHER] {
            run(&format!("ip -n inside addr add {address}/128 dev lo nodad"));
        }
        run("ip netns exec inside sysctl -qw net.ipv6.conf.all.forwarding=1");
        let key = PrivateKey::random();
        let peers = Arc::new(Peers::new(&key));
        let socket = open_socket(([0, 0, 0, 0, 0, 0, 0, 0], PORT).into()).unwrap();
        let server = Some(Server::start(peers.clone(), socket, device).unwrap());
        Self { key, peers, server }
    }
}

/// A computer of a user, in a namespace of its own.
struct Computer {
    name: String,
    interface: String,
    key: PrivateKey,
    peer: Peer,
    wireguard: Child,
}

impl Computer {
    /// `number` is less than 250.
    fn start(place: &Place, number: u8) -> Self {
        let name = format!("peer{number}");
        let key = PrivateKey::random();
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add to{number} type veth peer name out netns {name}"));
        run(&format!("ip addr add 10.9.{number}.1/24 dev to{number}"));
        run(&format!("ip addr add fd00:9:{number}::1/64 dev to{number} nodad"));
        run(&format!("ip link set to{number} up"));
        run(&format!("ip -n {name} addr add 10.9.{number}.2/24 dev out"));
        run(&format!("ip -n {name} addr add 10.9.{number}.3/24 dev out"));
        run(&format!("ip -n {name} addr add fd00:9:{number}::2/64 dev out nodad"));
        run(&format!("ip -n {name} link set out up"));
        // The socket for settings goes by the name, which is the same in all network namespaces.
        let interface = format!("wg{number}");
        let wireguard = Command::new("ip")
            .args(["netns", "exec", &name, "wireguard-go", "--foreground", &interface])
            .env("WG_PROCESS_FOREGROUND", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect(
                "these tests need wireguard-go: apt-get install wireguard-go wireguard-tools \
                     iputils-ping",
            );
        let address = format!("fdaa:1:2::{number}:2");
        let peer = Peer {
            key: key.public(),
            address: address.parse().unwrap(),
            network: NETWORK.parse().unwrap(),
        };
        let this = Self { name, interface, key, peer, wireguard };
        eventually(&format!("ip netns exec {} wg show {}", this.name, this.interface));
        this.configure(place.key.public(), &format!("10.9.{number}.1:{PORT}"));
        this.run(&format!("ip addr add {address}/128 dev wg{number} nodad"));
        this.run(&format!("ip link set wg{number} mtu 1420 up"));
        this.run(&format!("ip route add fdaa::/16 dev wg{number}"));
        this
    }

    fn configure(&self, server: PublicKey, endpoint: &str) {
        let file = PathBuf::from(format!("/tmp/{}.conf", self.name));
        let text = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {server}\nAllowedIPs = fdaa::/16\n\
             Endpoint = {endpoint}\n",
            *self.key.to_text()
        );
        fs::write(&file, text).unwrap();
        self.run(&format!("wg setconf {} {}", self.interface, file.display()));
    }

    #[track_caller]
    fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    fn reaches(&self, address: &str) -> bool {
        output(&format!("ip netns exec {} ping -6 -c1 -W2 {address}", self.name)).is_ok()
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        let _ = self.wireguard.kill();
        let _ = self.wireguard.wait();
    }
}

fn place_with(count: u8) -> (Place, Vec<Computer>) {
    let place = Place::new();
    let computers: Vec<_> = (1..=count).map(|number| Computer::start(&place, number)).collect();
    let peers = computers.iter().map(|computer| computer.peer.clone()).collect();
    place.peers.replace(peers).unwrap();
    (place, computers)
}

#[test]
fn wireguard_go_reaches_its_network_over_ipv4_and_ipv6_and_nothing_else() {
    on_a_host(|| {
        let (place, computers) = place_with(2);
        let [one, two] = &computers[..] else { panic!() };
        for computer in &computers {
            assert!(computer.reaches(MACHINE), "{}", computer.name);
            assert!(computer.reaches("fdaa:1:2::3"));
            assert!(!computer.reaches(OTHER), "of another network");
            let own = computer.peer.address;
            assert!(
                output(&format!("ip netns exec inside ping -6 -c1 -W2 -I {MACHINE} {own}")).is_ok()
            );
            assert!(
                output(&format!("ip netns exec inside ping -6 -c1 -W2 -I {OTHER} {own}")).is_err()
            );
        }
        let status = place.peers.status(&one.peer.key).unwrap();
        assert_eq!(status.endpoint.unwrap().ip().to_canonical().to_string(), "10.9.1.2");
        assert_eq!(status.refused, 1);
        one.configure(place.key.public(), &format!("[fd00:9:1::1]:{PORT}"));
        assert!(one.reaches(MACHINE));
        let status = place.peers.status(&one.peer.key).unwrap();
        assert_eq!(status.endpoint.unwrap().ip().to_string(), "fd00:9:1::2");
        assert!(two.reaches(MACHINE));
    });
}

#[test]
fn a_spoofed_inner_source_is_dropped() {
    on_a_host(|| {
        let (place, computers) = place_with(2);
        let [one, two] = &computers[..] else { panic!() };
        assert!(one.reaches(MACHINE) && two.reaches(MACHINE));
        for stolen in [two.peer.address.to_string(), "fdaa:1:2:9::7".into(), OTHER.into()] {
            one.run(&format!("ip addr add {stolen}/128 dev wg1 nodad"));
            let before = place.peers.status(&one.peer.key).unwrap().refused;
            let ping = format!("ping -6 -c1 -W1 -I {stolen} {MACHINE}");
            assert!(output(&format!("ip netns exec {} {ping}", one.name)).is_err());
            assert_eq!(place.peers.status(&one.peer.key).unwrap().refused, before + 1);
        }
    });
}

#[test]
fn a_peer_that_roams_is_reached_where_it_is() {
    on_a_host(|| {
        let (place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        assert!(one.reaches(MACHINE));
        let at = |ip: &str| {
            let status = place.peers.status(&one.peer.key).unwrap();
            assert_eq!(status.endpoint.unwrap().ip().to_canonical().to_string(), ip);
            status.last_handshake
        };
        let handshake = at("10.9.1.2");
        one.run("ip addr flush dev out");
        one.run("ip addr add 10.9.1.7/24 dev out");
        // wireguard-go keeps to an address that it has used until it opens another port.
        one.run("wg set wg1 listen-port 7777");
        assert!(one.reaches(MACHINE));
        assert_eq!(at("10.9.1.7"), handshake, "the session goes on");
        let own = one.peer.address;
        run(&format!("ip netns exec inside ping -6 -c1 -W2 -I {MACHINE} {own}"));
    });
}

#[test]
fn a_server_that_is_started_again_takes_its_peers_back() {
    on_a_host(|| {
        let (mut place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        assert!(one.reaches(MACHINE));
        drop(place.server.take());
        assert!(!one.reaches(MACHINE));
        let device = within("inside", || create_device("peers").unwrap());
        run("ip -n inside link set peers mtu 1420 up");
        run("ip -n inside route add fdaa:1:2::/80 dev peers");
        let peers = Arc::new(Peers::new(&place.key));
        peers.replace(vec![one.peer.clone()]).unwrap();
        let socket = open_socket(([0, 0, 0, 0, 0, 0, 0, 0], PORT).into()).unwrap();
        let _server = Server::start(peers, socket, device).unwrap();
        eventually(&format!("ip netns exec {} ping -6 -c1 -W1 {MACHINE}", one.name));
    });
}

/// Sends a megabyte there and back over TCP.
fn transfer(computer: &Computer) {
    const SIZE: usize = 1_000_000;
    let (ready, port) = mpsc::channel();
    let echo = thread::spawn(move || {
        within("inside", move || {
            let listener = TcpListener::bind((MACHINE, 0)).unwrap();
            ready.send(listener.local_addr().unwrap().port()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; SIZE];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
    });
    let port = port.recv().unwrap();
    within(&computer.name, move || {
        let sent: Vec<_> = (0..SIZE).map(|at| ((at * at) >> 7) as u8).collect();
        let mut stream = TcpStream::connect((MACHINE, port)).unwrap();
        stream.write_all(&sent).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == sent);
    });
    echo.join().unwrap();
}

#[test]
fn tcp_gets_through_what_loses_one_packet_of_a_hundred_or_of_ten() {
    on_a_host(|| {
        let (place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        for percent in [0, 1, 10] {
            let rules = format!(
                "table inet loss {{ chain in {{ type filter hook input priority 0; \
                 udp dport {PORT} numgen random mod 100 < {percent} drop; \
                 udp sport {PORT} numgen random mod 100 < {percent} drop; }}; }}"
            );
            fs::write("/tmp/loss", rules).unwrap();
            for namespace in ["", "ip netns exec peer1 "] {
                run(&format!("{namespace}nft flush ruleset"));
                run(&format!("{namespace}nft -f /tmp/loss"));
            }
            // A new peer, so the handshake is lost at times, too.
            one.configure(place.key.public(), &format!("10.9.1.1:{PORT}"));
            eventually(&format!("ip netns exec {} ping -6 -c1 -W1 {MACHINE}", one.name));
            transfer(one);
        }
    });
}

#[test]
fn packets_of_the_full_size_pass_and_larger_ones_meet_an_error_not_a_void() {
    on_a_host(|| {
        let (_place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        assert!(one.reaches(MACHINE));
        // 1420 bytes with both headers.
        one.run(&format!("ping -6 -c1 -W2 -M do -s 1372 {MACHINE}"));
        let own = one.peer.address;
        run(&format!("ip netns exec inside ping -6 -c1 -W2 -M do -s 1372 -I {MACHINE} {own}"));
        let said = |command: &str| match output(&format!("{command} 2>&1; true")) {
            Ok(said) | Err(said) => said,
        };
        // Of a peer that thinks it may send more the server takes more.
        one.run("ip link set wg1 mtu 1500");
        one.run(&format!("ping -6 -c1 -W2 -s 1400 {MACHINE}"));
        let large =
            said(&format!("ip netns exec inside ping -6 -c1 -W2 -M do -s 1400 -I {MACHINE} {own}"));
        assert!(large.contains("mtu=1420") || large.contains("mtu: 1420"), "{large}");
        // A link behind the server that takes less says so, and the peer hears it.
        run("ip netns add behind");
        run("ip -n inside link add small mtu 1300 type veth peer name small netns behind");
        for (namespace, address) in [("inside", "fdaa:1:2:7::1"), ("behind", "fdaa:1:2:7::2")] {
            run(&format!("ip -n {namespace} link set small mtu 1300 up"));
            run(&format!("ip -n {namespace} addr add {address}/64 dev small nodad"));
        }
        run("ip -n behind route add default via fdaa:1:2:7::1");
        one.run("ip link set wg1 mtu 1420");
        let large = said(&format!(
            "ip netns exec {} ping -6 -c2 -W2 -M do -s 1372 fdaa:1:2:7::2",
            one.name
        ));
        assert!(large.contains("mtu=1300") || large.contains("mtu: 1300"), "{large}");
        one.run("ping -6 -c1 -W2 -s 1372 fdaa:1:2:7::2");
    });
}

#[test]
fn connections_of_small_segments_get_through() {
    on_a_host(|| {
        let (_place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        // More of them fit into 64 KiB than one read of the device may become.
        one.run("ip route replace fdaa::/16 dev wg1 advmss 200");
        eventually(&format!("ip netns exec {} ping -6 -c1 -W1 {MACHINE}", one.name));
        transfer(one);
    });
}

#[test]
fn a_host_of_several_addresses_answers_from_the_one_that_was_asked() {
    on_a_host(|| {
        let (place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        for address in ["10.9.1.9/24", "fd00:9:1::9/64"] {
            run(&format!("ip addr add {address} dev to1 nodad"));
        }
        for (host, rule) in
            [("10.9.1.9", "ip saddr != 10.9.1.9"), ("[fd00:9:1::9]", "ip6 saddr != fd00:9:1::9")]
        {
            // As behind NAT, where what comes from elsewhere does not pass.
            let filter = format!(
                "table inet nat {{ chain in {{ type filter hook input priority 0; udp sport \
                 {PORT} {rule} drop; }}; }}"
            );
            fs::write("/tmp/nat", filter).unwrap();
            one.run("nft flush ruleset");
            one.run("nft -f /tmp/nat");
            one.configure(place.key.public(), &format!("{host}:{PORT}"));
            assert!(one.reaches(MACHINE), "{host}");
            transfer(one);
            // When the address is gone, peers that find the host at another go on.
            let address = host.trim_matches(['[', ']']);
            let prefix = if address.contains(':') { 64 } else { 24 };
            run(&format!("ip addr del {address}/{prefix} dev to1"));
            one.run("nft flush ruleset");
            let other = if address.contains(':') { "[fd00:9:1::1]" } else { "10.9.1.1" };
            let own = one.peer.address;
            run(&format!("ip netns exec inside ping -6 -c1 -W2 -I {MACHINE} {own}"));
            one.configure(place.key.public(), &format!("{other}:{PORT}"));
            assert!(one.reaches(MACHINE), "{other}");
        }
    });
}

/// Passes datagrams between a peer and the server, and keeps those of either.
struct Relay {
    /// Where the peer sends to.
    port: u16,
    /// Seen by the server as the peer's.
    to_server: UdpSocket,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    fn start() -> Self {
        let outside = UdpSocket::bind("10.9.1.1:0").unwrap();
        let to_server = UdpSocket::bind("127.0.0.1:0").unwrap();
        to_server.connect(("127.0.0.1", PORT)).unwrap();
        let port = outside.local_addr().unwrap().port();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let peer = Arc::new(Mutex::new(None));
        // They end with the test's process.
        let (from, to) = (outside.try_clone().unwrap(), to_server.try_clone().unwrap());
        let (keep, seen) = (kept.clone(), peer.clone());
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok((length, source)) = from.recv_from(&mut buffer) {
                *seen.lock().unwrap() = Some(source);
                remember(&keep, &buffer[..length]);
                let _ = to.send(&buffer[..length]);
            }
        });
        let (from, keep) = (to_server.try_clone().unwrap(), kept.clone());
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length) = from.recv(&mut buffer) {
                remember(&keep, &buffer[..length]);
                if let Some(peer) = *peer.lock().unwrap() {
                    let _ = outside.send_to(&buffer[..length], peer);
                }
            }
        });
        Self { port, to_server, kept }
    }

    fn kept(&self) -> Vec<Vec<u8>> {
        self.kept.lock().unwrap().clone()
    }
}

/// Keeps some datagrams of each kind.
fn remember(kept: &Mutex<Vec<Vec<u8>>>, datagram: &[u8]) {
    let mut kept = kept.lock().unwrap();
    let kind = datagram.first();
    if kept.iter().filter(|other| other.first() == kind).count() < 16 {
        kept.push(datagram.to_vec());
    }
}

/// Changes something: bits, bytes, the length, up to the largest datagram.
fn damage(random: &mut StdRng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..8) {
            0..3 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = random.random()),
            4 => bytes.truncate(at),
            5 => bytes.iter_mut().take(1).for_each(|kind| *kind = random.random_range(0..7)),
            6 => bytes.resize(bytes.len() + random.random_range(1..2000), 7),
            _ => bytes.resize(random.random_range(0..=65_507), random.random()),
        }
    }
    bytes
}

/// Rounds of something that is tried with random input, and their seed.
fn rounds() -> (u32, StdRng) {
    let seed = std::env::var("CADDIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("CADDIS_SEED={seed}");
    let rounds = if std::env::var_os("CADDIS_SOAK").is_some() { 400 } else { 4 };
    (rounds, StdRng::seed_from_u64(seed))
}

/// Memory of this process, MiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn a_peer_goes_on_and_memory_stays_while_damaged_datagrams_come_from_everywhere() {
    on_a_host(|| {
        let (place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        let relay = Relay::start();
        one.configure(place.key.public(), &format!("10.9.1.1:{}", relay.port));
        assert!(one.reaches(MACHINE));
        let kept = relay.kept();
        let kinds: BTreeSet<_> = kept.iter().map(|datagram| datagram[0]).collect();
        assert!([1, 2, 4].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.connect(("127.0.0.1", PORT)).unwrap();
        let (rounds, mut random) = rounds();
        let mut first = None;
        for round in 0..rounds {
            for _ in 0..2000 {
                let sound = &kept[random.random_range(0..kept.len())];
                let bytes = match random.random_range(0..10) {
                    0 => (0..random.random_range(0..2000)).map(|_| random.random()).collect(),
                    1 => sound.clone(),
                    _ => damage(&mut random, sound),
                };
                let from = if random.random() { &stranger } else { &relay.to_server };
                // One that is too large is refused here.
                let _ = from.send(&bytes);
            }
            eventually(&format!("ip netns exec {} ping -6 -c1 -W1 {MACHINE}", one.name));
            let first = *first.get_or_insert_with(memory);
            assert!(memory() < first + 64, "round {round}: {first} MiB, then {}", memory());
        }
        transfer(one);
        let status = place.peers.status(&one.peer.key).unwrap();
        assert_eq!(status.refused, 0, "nothing damaged was taken for its own");
    });
}

/// A segment of TCP with a right checksum.
fn segment(source: Ipv6Addr, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let destination: Ipv6Addr = MACHINE.parse().unwrap();
    let mut tcp = vec![0x12, 0x34, 0, 80];
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let length = tcp.len() as u16;
    let mut pseudo = [source.octets(), destination.octets()].concat();
    pseudo.extend([0, 0]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    pseudo.extend(&tcp);
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([6, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(tcp);
    packet
}

#[test]
fn a_peer_goes_on_that_sends_packets_of_any_kind() {
    on_a_host(|| {
        let (place, computers) = place_with(1);
        let [one] = &computers[..] else { panic!() };
        assert!(one.reaches(MACHINE));
        let raw = within(&one.name, || {
            let raw = Type::RAW;
            socket2::Socket::new(Domain::IPV6, raw, Some(Protocol::from(libc::IPPROTO_RAW)))
        });
        let raw = raw.unwrap();
        let to: SocketAddr = format!("[{MACHINE}]:0").parse().unwrap();
        let (rounds, mut random) = rounds();
        for _ in 0..rounds {
            for _ in 0..100 {
                // A row of segments, as are put together, some of them damaged.
                let (mut sequence, size) = (random.random(), random.random_range(1..1300));
                for _ in 0..20 {
                    let flags = [0x10, 0x18, 0x11, 0x02][random.random_range(0..4)];
                    let payload = vec![random.random(); size];
                    let mut packet = segment(one.peer.address, sequence, flags, &payload);
                    sequence = sequence.wrapping_add(size as u32);
                    if random.random_range(0..3) == 0 {
                        let damaged = damage(&mut random, &packet[40..]);
                        packet.truncate(40);
                        packet.extend(&damaged[..damaged.len().min(1380)]);
                        packet[6] = [6, 6, 17, 58, 0, 44][random.random_range(0..6)];
                        let length = (packet.len() - 40) as u16;
                        packet[4..6].copy_from_slice(&length.to_be_bytes());
                    }
                    let _ = raw.send_to(&packet, &to.into());
                }
            }
            eventually(&format!("ip netns exec {} ping -6 -c1 -W1 {MACHINE}", one.name));
        }
        transfer(one);
        assert!(place.peers.status(&one.peer.key).unwrap().received > 1_000_000);
    });
}

/// The system calls in which the threads wait that move packets in this thread's namespace: other
/// tests have theirs in this process.
fn waits() -> Vec<String> {
    let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let own = tasks.filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("wireguard-"))
            && fs::read_link(task.join("ns/net")).is_ok_and(|there| there == here)
    });
    own.map(|task| fs::read_to_string(task.join("syscall")).unwrap()).collect()
}

/// In `poll`, the third argument of which is -1: without end.
fn is_asleep(wait: &str) -> bool {
    let words: Vec<_> = wait.split_whitespace().collect();
    words.first() == Some(&"7") && words.get(3).is_some_and(|end| end.ends_with("ffffffff"))
}

#[test]
fn with_a_thousand_idle_peers_both_threads_sleep_until_something_comes() {
    on_a_host(|| {
        let place = Place::new();
        let computer = Computer::start(&place, 1);
        let peer = |number: u32| Peer {
            key: PrivateKey::random().public(),
            address: format!("fdaa:1:2::{:x}:2", number + 100).parse().unwrap(),
            network: NETWORK.parse().unwrap(),
        };
        let mut peers: Vec<_> = (0..1000).map(peer).collect();
        peers.push(computer.peer.clone());
        place.peers.replace(peers).unwrap();
        let begun = Instant::now();
        while waits().len() < 2 || !waits().iter().all(|wait| is_asleep(wait)) {
            assert!(begun.elapsed().as_secs() < 60, "{:?}", waits());
            thread::yield_now();
        }
        assert!(computer.reaches(MACHINE), "and one among them connects");
    });
}
