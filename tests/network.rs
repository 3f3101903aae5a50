//! What can and what can't be reached from inside a VM, and that it can't pretend to be another.

use anyhow::{Context as _, Result};
use caddis_testkit::{DEADLINE, Host, Machine, Outside, run};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use crate::stand::{APP, Stand};

/// Serves one page on port 80 and says when it listens.
const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";

/// Whether a TCP connection from inside the VM gets an answer. Dropped packets give none, hence the
/// limit.
async fn reaches(machine: &Machine, address: &str, port: u16) -> Result<bool> {
    let request = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 3 nc -w 3 {address} {port} | grep -q ."
    );
    Ok(machine.exec(&["/bin/sh", "-c", &request]).await?.code == 0)
}

/// Sends a datagram that holds `text` to the outside: busybox has no simpler means than a request
/// for a file.
fn datagram(text: &str) -> String {
    format!(
        "timeout 2 tftp -g -l /dev/null -r {text} {} {} || true",
        Outside::ADDRESS,
        Outside::UDP_PORT
    )
}

async fn ipv4(machine: &Machine) -> Result<String> {
    Ok(machine.get().await?["private_ipv4"].as_str().context("no private_ipv4")?.to_owned())
}

/// Queries of the only machine to the name server: all of them, and those that went on from there.
async fn queries(stand: &Stand<'_>) -> Result<(u64, u64)> {
    let mut top = stand.server.begin_cli(&["machine", "top", "-a", APP, "--json"])?;
    let mut samples = BufReader::new(top.stdout.take().context("its output is piped")?).lines();
    let sample = tokio::time::timeout(DEADLINE, samples.next_line()).await??;
    let sample: Value = serde_json::from_str(&sample.context("no sample")?)?;
    let number = |name| sample["machines"][0][name].as_u64().context("no number");
    Ok((number("dns_queries")?, number("dns_forwarded")?))
}

/// The number of queries in the table that `caddis machine top` shows.
async fn shown_queries(stand: &Stand<'_>, machine: &Machine) -> Result<u64> {
    let top = ["machine", "top", "-a", APP, "--once", "--interval", "1"];
    let table = stand.server.cli(&top).await?.stdout;
    let line = |word| table.lines().find(|line| line.contains(word)).context("no such line");
    let titles = line("CPU TIME")?.split('│').map(str::trim);
    let cells = line(machine.id())?.split('│').map(str::trim);
    let (_, shown) = titles.zip(cells).find(|(title, _)| *title == "DNS").context("no column")?;
    Ok(shown.parse()?)
}

#[tokio::test]
async fn a_vm_reaches_the_outside_by_name_through_nat_and_nothing_private() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script(PROGRAM, json!({})).await?;
    machine.logged("ready").await?;

    let before = queries(&stand).await?;
    let page = machine.shell(&format!("wget -q -O - http://{}/", Outside::NAME)).await?;
    assert_eq!(page, format!("you are {}\n", Host::ADDRESS), "by name, from the host's address");
    assert!(
        machine.exec(&["/bin/nslookup", "unknown.test"]).await?.code != 0,
        "what has no address is denied"
    );
    // Names of the outside are counted twice, those of machines once, what another server is asked
    // never.
    let (all, forwarded) = queries(&stand).await?;
    assert!(forwarded >= before.1 + 2, "{before:?}, {forwarded}");
    assert_eq!(all - before.0, forwarded - before.1);
    machine.shell(&format!("nslookup -type=aaaa {APP}.internal")).await?;
    let (with_own, still_forwarded) = queries(&stand).await?;
    assert!(with_own > all && still_forwarded == forwarded, "{with_own}, {still_forwarded}");
    let answer = machine.shell(&format!("nslookup {} {}", Outside::NAME, Outside::ADDRESS)).await?;
    assert!(answer.contains(Outside::ADDRESS), "datagrams come back: {answer}");
    assert_eq!(queries(&stand).await?, (with_own, forwarded));
    assert_eq!(shown_queries(&stand, &machine).await?, with_own);
    machine.shell(&datagram("hello")).await?;
    let seen = host.outside().datagrams_until(b"hello").await?;
    assert!(
        seen.iter().all(|datagram| datagram.source.ip().to_string() == Host::ADDRESS),
        "{seen:?}"
    );

    // A service of the host on all its addresses, which answers whoever gets through.
    let listener = TcpListener::bind("[::]:8081").await?;
    let service = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Who hangs up gets nothing.
            let _ = stream.write_all(b"host\n").await;
        }
    });
    let route = machine.shell("ip route show default").await?;
    let gateway = route.split_whitespace().nth(2).context("a default gateway")?.to_owned();
    for (address, port) in [
        (Host::ADDRESS, 8081),
        (Host::ADDRESS_V6, 8081),
        (&*gateway, 8081),
        (&*gateway, 4280),
        ("192.168.77.2", 8081),
        (Outside::LAN_ADDRESS, Outside::HTTP_PORT),
        (Outside::METADATA_ADDRESS, Outside::HTTP_PORT),
    ] {
        assert!(!reaches(&machine, address, port).await?, "{address}:{port} must not be reached");
    }
    assert!(
        reaches(&machine, Outside::ADDRESS, Outside::HTTP_PORT).await?,
        "the test's means work"
    );
    service.abort();

    // Its host reaches it by both addresses, the outside by neither.
    let address = ipv4(&machine).await?;
    for url in [format!("http://{address}/"), format!("http://[{}]/", machine.address().await?)] {
        let page = run(["curl", "-sS", "--globoff", "--noproxy", "*", "--max-time", "30", &url])?;
        assert_eq!(page, "hello from a machine\n", "{url}");
    }
    host.outside().run(&["ip", "route", "add", &address, "via", Host::ADDRESS])?;
    let url = format!("http://{address}/");
    assert!(
        host.outside().run(&["curl", "-sS", "--noproxy", "*", "--max-time", "3", &url]).is_err()
    );
    Ok(())
}

#[tokio::test]
async fn machines_meet_in_their_network_only_and_cannot_forge_addresses() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.api().create_app("apart", Some("apart")).await?;
    let first = stand.script(PROGRAM, json!({})).await?;
    let second = stand.script(PROGRAM, json!({})).await?;
    let config =
        json!({ "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", PROGRAM] } });
    let apart = stand.server.api().create_machine("apart", config).await?;
    for machine in [&first, &second, &apart] {
        machine.logged("ready").await?;
    }
    let (one, two, other) =
        (first.address().await?, second.address().await?, apart.address().await?);

    assert!(reaches(&first, &two, 80).await?, "machines of one network meet");
    assert!(reaches(&second, &one, 80).await?);
    assert!(!reaches(&first, &other, 80).await?, "machines of different networks do not");
    assert!(!reaches(&apart, &one, 80).await?);
    assert!(
        !reaches(&apart, &ipv4(&first).await?, 80).await?,
        "not by their IPv4 addresses either"
    );

    // `apart` takes an address of the other network, and then asks and answers under it.
    apart.shell(&format!("ip -6 address add {two}/128 dev eth0")).await?;
    let forged = format!("timeout 3 wget -q -O - http://[{one}]/");
    assert_ne!(apart.exec(&["/bin/sh", "-c", &forged]).await?.code, 0);
    assert!(reaches(&first, &two, 80).await?, "the owner of an address keeps it");

    // Datagrams under an address that is not its own never get out; one under its own, sent after
    // them, does.
    let route = apart.shell("ip route show default").await?;
    let gateway = route.split_whitespace().nth(2).context("a default gateway")?.to_owned();
    let send = |source: &str, text: &str| {
        format!(
            "ip route replace default via {gateway} dev eth0 src {source} && {}",
            datagram(text)
        )
    };
    let (own, victim) = (ipv4(&apart).await?, ipv4(&first).await?);
    for source in [&*victim, "198.51.100.77", "10.99.99.99"] {
        apart.shell(&format!("ip address add {source}/32 dev eth0")).await?;
        apart.shell(&send(source, "forged")).await?;
    }
    apart.shell(&send(&own, "genuine")).await?;
    let seen = host.outside().datagrams_until(b"genuine").await?;
    assert!(
        seen.iter().all(|datagram| !String::from_utf8_lossy(&datagram.payload).contains("forged")),
        "{seen:?}"
    );

    // Nor does another link address help.
    apart
        .shell(
            "ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:99 && ip link \
             set eth0 up",
        )
        .await?;
    assert!(!reaches(&apart, &one, 80).await?);
    assert!(reaches(&first, &two, 80).await?, "the others are not disturbed");
    Ok(())
}

#[tokio::test]
async fn no_two_machines_have_the_same_address() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let body = json!({ "config": { "image": stand.busybox()? }, "skip_launch": true });
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let machine = stand.server.api().create_machine_from(APP, body.clone()).await?;
        machine.wait("settled").await?;
        assert!(seen.insert(machine.address().await?), "{seen:?}");
    }
    assert!(seen.iter().all(|address| address.starts_with("fdaa:")), "{seen:?}");
    Ok(())
}
