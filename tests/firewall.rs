//! The packet filter can't be taken away: other programs of the host may do what they like with its
//! firewall.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, Outside, run};
use serde_json::json;
use tokio::net::TcpListener;

use crate::stand::Stand;

const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";

/// A service on all addresses of the host, and how many connections it got.
async fn service(port: u16) -> Result<Arc<AtomicUsize>> {
    let listener = TcpListener::bind(("::", port)).await?;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(count)
}

/// Does something again and again, in the host's namespace, until it is dropped.
struct Again {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<u32>>>,
}

impl Again {
    fn start(command: &'static [&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // A thread is where its creator is.
        let thread = thread::spawn(move || {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                run(command)?;
                times += 1;
            }
            Ok(times)
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .context("ended twice")?
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends from inside a machine, many at once for some seconds, echo requests and requests for
/// connections to places that it must not reach; what came back of it.
async fn attempts(machine: &Machine, places: &[&str]) -> Result<String> {
    let mut script = "rm -f /tmp/sent.*; ".to_owned();
    for (place, address) in places.iter().enumerate() {
        script += &format!(
            "for n in 1 2 3 4 5 6; do ping -c 4 -W 1 {address} >/tmp/sent.{place}.$n 2>&1 & \
             (timeout 4 nc -w 4 {address} 8081 </dev/null && echo bytes from {address} by TCP) \
             >>/tmp/sent.tcp 2>&1 & done; "
        );
    }
    script += "wait; cat /tmp/sent.* | grep 'bytes from' || true";
    machine.shell(&script).await
}

/// Waits until a machine gets a page from outside, as it must again and again.
async fn until_outside(machine: &Machine) -> Result<()> {
    let deadline = std::time::Instant::now() + DEADLINE;
    let get = format!("timeout 5 wget -q -O - http://{}/", Outside::NAME);
    loop {
        let reply = machine.exec(&["/bin/sh", "-c", &get]).await?;
        if reply.code == 0 {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "the outside is not reached again: {reply:?}"
        );
    }
}

#[tokio::test]
async fn while_a_firewall_is_flushed_in_a_loop_nothing_passes_that_is_refused() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.api().create_app("apart", Some("apart")).await?;
    let (first, second) =
        (stand.script(PROGRAM, json!({})).await?, stand.script(PROGRAM, json!({})).await?);
    let config =
        json!({ "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", PROGRAM] } });
    let apart = stand.server.api().create_machine("apart", config).await?;
    for machine in [&first, &second, &apart] {
        machine.logged("ready").await?;
    }
    let reached = service(8081).await?;
    let (two, other) = (second.address().await?, apart.address().await?);
    let route = first.shell("ip route show default").await?;
    let gateway = route.split_whitespace().nth(2).context("a default gateway")?.to_owned();
    let refused = [
        Host::ADDRESS,
        Host::ADDRESS_V6,
        "192.168.77.2",
        Outside::LAN_ADDRESS,
        Outside::METADATA_ADDRESS,
        "169.254.255.2",
        "fdaa::2",
        &*other,
    ];
    assert_eq!(attempts(&first, &refused).await?, "", "before");
    assert!(
        first
            .shell(&format!("ping -c 1 -W 5 {gateway} || true"))
            .await?
            .contains("1 packets transmitted")
    );

    let flushing = Again::start(&["nft", "flush", "ruleset"]);
    // Under a forged address, and its own, again and again.
    let forged = "ip address add 198.51.100.77/32 dev eth0; \
                  ip route replace 198.51.100.1/32 via GATEWAY dev eth0 src 198.51.100.77; n=0; \
                  while [ $n -lt 5 ]; do timeout 1 tftp -g -l /dev/null -r forged OUTSIDE 7; \
                  n=$((n+1)); done; \
                  ip route del 198.51.100.1/32 via GATEWAY; ip address del 198.51.100.77/32 dev \
                  eth0; true";
    let forged = forged.replace("GATEWAY", &gateway).replace("OUTSIDE", Outside::ADDRESS);
    let own = format!(
        "n=0; while [ $n -lt 5 ]; do timeout 1 tftp -g -l /dev/null -r own {} 7; n=$((n+1)); \
         done; true",
        Outside::ADDRESS
    );
    let (came, _, _) =
        tokio::try_join!(attempts(&first, &refused), apart.shell(&forged), second.shell(&own))?;
    assert_eq!(
        came, "",
        "nothing that was refused before came back while the firewall was flushed"
    );
    assert_eq!(reached.load(Ordering::Relaxed), 0, "nothing reached the host");
    // Meanwhile what is allowed goes on: among machines untouched, to the outside between two
    // flushes.
    let page = first.shell(&format!("wget -q -O - http://[{two}]/")).await?;
    assert_eq!(page, "hello from a machine\n");
    until_outside(&first).await?;
    let flushed = flushing.end()?;
    assert!(flushed > 20, "the firewall was flushed {flushed} times");

    until_outside(&first).await?;
    until_outside(&apart).await?;
    apart
        .shell(&format!("timeout 2 tftp -g -l /dev/null -r genuine {} 7 || true", Outside::ADDRESS))
        .await?;
    let seen = host.outside().datagrams_until(b"genuine").await?;
    for datagram in &seen {
        assert_eq!(
            datagram.source.ip().to_string(),
            Host::ADDRESS,
            "nothing left under another address: {datagram:?}"
        );
        assert!(!String::from_utf8_lossy(&datagram.payload).contains("forged"), "{datagram:?}");
    }
    assert_eq!(attempts(&first, &refused).await?, "", "afterwards");
    assert_eq!(
        first.http_get(80, "/").await?,
        "hello from a machine\n",
        "the host reaches its machines"
    );

    // It is told in the log, in the events of machines, and by the server.
    stand.server.until_logged("another program removed part of the machines' network", 1).await?;
    let events = first.events().await?;
    let event = events.iter().find(|event| event["type"] == "network").context("an event")?;
    assert_eq!(event["details"]["removed"], "packet filter", "{event}");
    let status = stand.server.api().get("/v1/platform/status").await?.ok()?;
    assert_eq!(status["ok"], true, "{status}");
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("another program") && warnings.contains("packet filter"),
        "{warnings}"
    );

    // The same for everything else that the host has of it. New machines start, too.
    let link = "caddis-";
    let link = run(["ip", "-oneline", "link"])?
        .split(": ")
        .find(|word| word.starts_with(link))
        .context("a link")?
        .to_owned();
    let link = link.split('@').next().unwrap_or_default().to_owned();
    for sabotage in [
        "ip rule flush; ip rule add lookup main pref 32766; ip rule add lookup default pref 32767",
        "ip -6 rule flush; ip -6 rule add lookup main pref 32766",
        &format!("ip rule del iif {link} blackhole"),
        &format!("ip link del {link}"),
        &format!("ip link set {link} down; ip link set {link} up"),
        &format!("ip address flush dev {link}"),
        &format!("ip route flush dev {link}; ip -6 route flush dev {link}"),
        "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        run(["sh", "-c", sabotage]).with_context(|| sabotage.to_owned())?;
        until_outside(&first).await.with_context(|| sabotage.to_owned())?;
        assert_eq!(first.http_get(80, "/").await?, "hello from a machine\n", "{sabotage}");
    }
    assert_eq!(attempts(&first, &refused).await?, "", "after all of it");
    assert_eq!(reached.load(Ordering::Relaxed), 0, "nothing reached the host");
    run(["nft", "flush", "ruleset"])?;
    let late = stand.script(PROGRAM, json!({})).await?;
    late.logged("ready").await?;
    until_outside(&late).await?;
    Ok(())
}

/// Without a server nobody puts anything back: then nothing passes, and the next server does.
#[tokio::test]
async fn without_a_server_a_flushed_firewall_lets_nothing_pass_until_the_next_one() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let script = "busybox httpd -p 80 -h /var/www; echo ready; n=0; \
                  while :; do timeout 2 nc -w 2 ADDRESS 8081 </dev/null; timeout 2 tftp -g -l \
                  /dev/null -r leak OUTSIDE 7; \
                  n=$((n+1)); echo $n >/var/www/tries; done";
    let script = script.replace("ADDRESS", Host::ADDRESS).replace("OUTSIDE", Outside::ADDRESS);
    let machine = stand.script(&script, json!({})).await?;
    machine.logged("ready").await?;
    host.outside().datagrams_until(b"leak").await?;
    let reached = service(8081).await?;
    let vm = stand.server.vm(&machine)?;
    let tries = format!("http://[{}]/tries", machine.address().await?);

    stand.server.kill().await?;
    run(["nft", "flush", "ruleset"])?;
    // Its host still reaches it, which needs no filter of the host, and learns how often it has
    // tried.
    let tried = || -> Result<u32> {
        let page = run(["curl", "-sS", "--globoff", "--noproxy", "*", "--max-time", "30", &tries])?;
        // Empty while it is written.
        Ok(page.trim().parse().unwrap_or(0))
    };
    let begun = std::time::Instant::now();
    let before = tried()?;
    while tried()? < before + 3 {
        ensure!(begun.elapsed() < DEADLINE, "the machine does not go on");
    }
    assert_eq!(stand.server.vms(), [vm]);
    // A server that had mounts to itself takes the one of the namespace along: the VM leads the
    // next one there.
    run(["umount", &stand.server.namespace()?.to_string_lossy()])?;
    stand.server.launch().await?;
    until_outside(&machine).await?;
    assert_eq!(stand.server.vm(&machine)?, vm, "it goes on");
    stand.server.kill().await?;

    // What an earlier release left in the host's own network: the tap of a VM that runs over an
    // update.
    let taps = stand.server.run_in_namespace(&["ip", "-oneline", "link"])?;
    let tap = taps.split(": ").find(|word| word.starts_with("caddis")).context("a tap")?.to_owned();
    let here = nix::unistd::gettid().to_string();
    stand.server.run_in_namespace(&["ip", "link", "set", &tap, "netns", &here])?;
    run(["ip", "link", "set", &tap, "up"])?;
    run(["ip", "address", "add", "169.254.255.1/32", "dev", &tap])?;
    run(["nft", "add table inet caddis"])?;
    run(["ip", "address", "add", "fdaa::3/128", "dev", "lo"])?;

    stand.server.launch().await?;
    until_outside(&machine).await?;
    assert_eq!(stand.server.vm(&machine)?, vm, "it goes on");
    assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");
    assert!(
        !run(["ip", "-oneline", "link"])?.contains(&format!("{tap}:")),
        "its tap is where those of others are"
    );
    let tables = run(["nft", "list", "tables"])?;
    assert!(
        tables.contains("caddis-") && !tables.lines().any(|line| line == "table inet caddis"),
        "{tables}"
    );
    assert!(!run(["ip", "-6", "address", "show", "dev", "lo"])?.contains("fdaa::3"));
    assert_eq!(reached.load(Ordering::Relaxed), 0, "nothing reached the host");
    let seen = host.outside().datagrams_until(b"leak").await?;
    assert!(
        seen.iter().all(|datagram| datagram.source.ip().to_string() == Host::ADDRESS),
        "{seen:?}"
    );
    Ok(())
}
