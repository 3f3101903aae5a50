//! A user's computer in the private network of real VMs, by WireGuard: with the file that the
//! command line wrote, and `wg-quick` as Debian has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use caddis_testkit::{Computer, DEADLINE, Host, Machine, Options, run};
use serde_json::json;

use crate::stand::{APP, Stand};

const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";
const PAGE: &str = "hello from a machine\n";

/// What the computer is told by a machine, in one attempt.
fn get(computer: &Computer, host: &str) -> Result<String> {
    let url = format!("http://{host}/");
    computer.run(&["curl", "--silent", "--show-error", "--max-time", "5", "--globoff", &url])
}

/// Asks until there is an answer: a tunnel needs a while after it was interrupted, and what was
/// sent before is lost.
async fn until_got(computer: &Computer, host: &str, when: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match get(computer, host) {
            Ok(page) => {
                ensure!(page == PAGE, "{when}: {page}");
                return Ok(());
            }
            Err(error) if begun.elapsed() > DEADLINE => return Err(error).context(when.to_owned()),
            // Lets the runtime see the end of the server.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// A server that listens for WireGuard, with an app in another network than [`APP`].
async fn start(host: &Host) -> Result<Stand<'_>> {
    let arguments = ["--wireguard-listen", "[::]:51820", "--wireguard-endpoint", Host::ADDRESS];
    let arguments = arguments.map(str::to_owned).to_vec();
    let stand = Stand::with(host, Options { arguments, ..Options::default() }).await?;
    stand.server.api().create_app("apart", Some("apart")).await?;
    Ok(stand)
}

/// A machine of the default network and one of another, which both serve a page.
async fn machines(stand: &Stand<'_>) -> Result<[Machine; 2]> {
    let machine = stand.script(PROGRAM, json!({})).await?;
    let config =
        json!({ "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", PROGRAM] } });
    let apart = stand.server.api().create_machine("apart", config).await?;
    for machine in [&machine, &apart] {
        machine.logged("ready").await?;
    }
    Ok([machine, apart])
}

/// Makes a peer and connects the computer; the configuration's file, and the peer's address.
async fn join(
    host: &Host,
    stand: &Stand<'_>,
    computer: &Computer,
    name: &str,
) -> Result<(String, String)> {
    let file = host.path(&format!("{name}.conf"));
    let file = file.to_str().context("a path")?;
    let words = ["wireguard", "create", "personal", "local", name, file];
    let made = stand.server.cli(&words).await?;
    ensure!(made.code == Some(0), "{made:?}");
    computer.run(&["wg-quick", "up", file])?;
    let shown = computer.run(&["ip", "-6", "-oneline", "address", "show", name])?;
    let address = shown.split_whitespace().nth(3).and_then(|word| word.split('/').next());
    Ok((file.to_owned(), address.context("the computer's address")?.to_owned()))
}

/// What `getent` finds, that is any program on the computer.
fn resolved(computer: &Computer, name: &str) -> Result<String> {
    let found = computer.run(&["getent", "ahostsv6", name])?;
    Ok(found.split_whitespace().next().unwrap_or_default().to_owned())
}

async fn fetched(machine: &Machine, host: &str) -> Result<String> {
    let script = format!("timeout 20 wget -q -O - http://{host}/ 2>&1 || echo failed");
    machine.shell(&script).await
}

#[tokio::test]
async fn a_computer_with_wg_quick_is_part_of_its_network_of_machines_and_of_no_other() -> Result<()>
{
    let host = Host::new().await?;
    let computer = Computer::start(&host, 1)?;
    let mut stand = start(&host).await?;
    let [machine, apart] = machines(&stand).await?;
    let (file, peer) = join(&host, &stand, &computer, "laptop").await?;

    // The computer reaches the machine, by address and by name.
    let address = machine.address().await?;
    until_got(&computer, &format!("[{address}]"), "by address").await?;
    let asked = computer.run(&["cat", "/etc/resolv.conf"])?;
    ensure!(asked.contains("nameserver fdaa:"), "openresolv has written it: {asked}");
    let app = format!("{APP}.internal");
    let own = format!("{}.vm.{app}", machine.id());
    for name in [&app, &own] {
        ensure!(resolved(&computer, name)? == address, "{name}");
        ensure!(get(&computer, name)? == PAGE, "{name}");
    }

    // The machine reaches the computer, by name.
    let pages = host.path("pages");
    std::fs::create_dir(&pages)?;
    std::fs::write(pages.join("index.html"), "hello from a laptop\n")?;
    let pages = pages.to_str().context("a path")?;
    computer.run(&["busybox", "httpd", "-p", "80", "-h", pages])?;
    let laptop = "laptop._peer.internal";
    let said = fetched(&machine, laptop).await?;
    ensure!(said == "hello from a laptop\n", "{said}");

    // Neither reaches another network, nor is reached from there.
    let foreign = apart.address().await?;
    ensure!(get(&computer, &format!("[{foreign}]")).is_err(), "a machine of another network");
    ensure!(computer.run(&["getent", "ahostsv6", "apart.internal"]).is_err(), "its name");
    ensure!(fetched(&machine, &format!("[{peer}]")).await? == "hello from a laptop\n");
    ensure!(fetched(&apart, &format!("[{peer}]")).await?.contains("failed"), "from elsewhere");
    ensure!(fetched(&apart, laptop).await?.contains("failed"), "by a name of elsewhere");

    // A machine that is started again has its address, and the tunnel is the same.
    machine.stop().await?;
    machine.wait("stopped").await?;
    ensure!(get(&computer, &format!("[{address}]")).is_err(), "a stopped machine");
    machine.start().await?;
    machine.wait("started").await?;
    until_got(&computer, &app, "after a stop and a start").await?;

    // So with the server, which has forgotten the session.
    stand.server.kill().await?;
    stand.server.launch().await?;
    until_got(&computer, &app, "after a kill of the server").await?;
    let said = fetched(&machine, laptop).await?;
    ensure!(said == "hello from a laptop\n", "after a kill of the server: {said}");

    computer.run(&["wg-quick", "down", &file])?;
    let asked = computer.run(&["cat", "/etc/resolv.conf"])?;
    ensure!(!asked.contains("fdaa:"), "openresolv has taken it out: {asked}");
    Ok(())
}

/// Does something again and again until it is dropped.
struct Again {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u32>>>,
}

impl Again {
    fn start(words: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // A thread is where its creator is.
        let thread = thread::spawn(move || {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                run(&words)?;
                times += 1;
            }
            Ok(times)
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("ended twice")?;
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Datagrams that came for a port where nobody listens, and echo requests.
fn counters(snmp: &str) -> Result<[u64; 2]> {
    let counter = |name: &str| {
        let line = snmp.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().parse().ok()).with_context(|| format!("{name} in {snmp}"))
    };
    Ok([counter("Udp6NoPorts")?, counter("Icmp6InEchos")?])
}

async fn arrived(machine: &Machine) -> Result<[u64; 2]> {
    counters(&machine.shell("cat /proc/net/snmp6").await?)
}

async fn arrived_at_both(machine: &Machine, computer: &Computer) -> Result<[[u64; 2]; 2]> {
    let computer = counters(&computer.run(&["cat", "/proc/net/snmp6"])?)?;
    Ok([arrived(machine).await?, computer])
}

/// Sends datagrams to a port where nobody listens, under an address that is the computer's as long.
fn send(computer: &Computer, source: &str, to: &str, count: u32) -> Result<()> {
    let script = format!(
        "ip -6 address replace {source}/128 dev thief nodad
         ip -6 route replace {to}/128 dev thief src {source}
         for _ in $(seq {count}); do echo x >/dev/udp/{to}/9 || true; done
         ip -6 address del {source}/128 dev thief"
    );
    computer.run(&["bash", "-c", &script]).map(drop)
}

#[tokio::test]
async fn what_is_forbidden_to_peers_does_not_pass_while_the_filter_is_flushed() -> Result<()> {
    let host = Host::new().await?;
    let [laptop, thief] = [Computer::start(&host, 1)?, Computer::start(&host, 2)?];
    let stand = start(&host).await?;
    let [machine, apart] = machines(&stand).await?;
    let (_, victim) = join(&host, &stand, &laptop, "laptop").await?;
    let (_, right) = join(&host, &stand, &thief, "thief").await?;
    let (own, foreign) = (machine.address().await?, apart.address().await?);
    for computer in [&laptop, &thief] {
        until_got(computer, &format!("[{own}]"), "before").await?;
    }

    let namespace = format!("--net={}", stand.server.namespace()?.display());
    let flush = ["nsenter", &namespace, "--", "nft", "flush", "ruleset"].map(str::to_owned);
    let flushing = Again::start(flush.to_vec());
    let (before, apart_before) =
        (arrived_at_both(&machine, &laptop).await?, arrived(&apart).await?);
    // As another peer, as something of another network, as the name server, as a machine.
    for (stolen, to) in [
        (&*victim, &*own),
        (&foreign, &own),
        ("fdaa::3", &own),
        (&own, &victim),
        (&right, &foreign),
    ] {
        send(&thief, stolen, to, 300)?;
    }
    // From another network to a peer.
    apart.shell(&format!("ping -c 5 -W 1 {victim} >/dev/null 2>&1; true")).await?;
    let allowed = laptop.run(&["ping", "-6", "-c", "50", "-i", "0.01", "-W", "5", &own]);
    let (after, apart_after) = (arrived_at_both(&machine, &laptop).await?, arrived(&apart).await?);
    let flushed = flushing.end()?;
    ensure!(flushed > 20, "flushed {flushed} times");
    ensure!(allowed.is_ok(), "what is allowed passes: {allowed:?}");
    let ([[datagrams, echoes], computer], [[later, more], computer_later]) = (before, after);
    ensure!(later == datagrams, "at the machine: {before:?}, {after:?}");
    ensure!(more >= echoes + 50, "what is allowed is counted: {before:?}, {after:?}");
    ensure!(computer == computer_later, "at the computer: {before:?}, {after:?}");
    ensure!(apart_before == apart_after, "elsewhere: {apart_before:?}, {apart_after:?}");
    // Under its own address it is heard.
    send(&thief, &right, &own, 10)?;
    let [datagrams, _] = arrived(&machine).await?;
    ensure!(datagrams >= later + 10, "{later}, {datagrams}");
    Ok(())
}
