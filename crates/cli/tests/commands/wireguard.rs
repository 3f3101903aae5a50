//! `wireguard`.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::stand::Stand;

#[tokio::test]
async fn a_peer_is_created_listed_shown_and_removed() {
    let stand = Stand::with_app().await;
    let made = stand.run("wireguard create personal local laptop").await.ok();
    let text = made.stdout;
    let lines: Vec<_> = text.lines().collect();
    let [interface, private, address, dns, mtu, "", peer, public, allowed, endpoint, keepalive] =
        lines[..]
    else {
        panic!("{text}")
    };
    assert_eq!((interface, mtu, peer), ("[Interface]", "MTU = 1420", "[Peer]"));
    assert_eq!(endpoint, "Endpoint = vpn.example.com:51820");
    assert_eq!(public, "PublicKey = 3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=");
    assert_eq!(keepalive, "PersistentKeepalive = 15");
    assert_eq!(private.len(), "PrivateKey = ".len() + 44);
    let network = allowed.strip_prefix("AllowedIPs = ").unwrap().strip_suffix("/48").unwrap();
    assert_eq!(dns, format!("DNS = {network}3"));
    let own = address.strip_prefix("Address = ").unwrap().strip_suffix("/128").unwrap();
    assert!(own.starts_with(network) && own.ends_with(":2"), "{own}");

    let listed = stand.run("wg list personal --json").await.ok().json();
    assert_eq!((&listed[0]["name"], &listed[0]["peer_ip"]), (&"laptop".into(), &own.into()));
    let status = stand.run("wg status personal laptop").await.ok();
    assert!(status.stdout.contains("never"));
    for (line, code, expected) in [
        ("wg create personal local laptop", 1, "the network has a WireGuard peer \"laptop\""),
        ("wg create personal local Laptop", 1, "invalid name, use 1 to 63 lowercase letters"),
        ("wg create personal nowhere x", 1, "unknown region 'nowhere'; available: local"),
        ("wg create personal local x x.txt", 1, "wg-quick takes the interface's name from it"),
        ("wg remove personal laptop", 0, "Removed WireGuard peer laptop"),
        ("wg remove personal laptop", 1, "could not remove WireGuard peer laptop: Could not find"),
        ("wg status personal laptop", 1, "could not show WireGuard peer laptop: Could not find"),
    ] {
        let outcome = stand.run(line).await;
        assert_eq!(outcome.code, code, "{outcome}");
        assert!(outcome.to_string().contains(expected), "{outcome}");
    }
}

#[tokio::test]
async fn the_file_is_the_owner_s_alone_and_nothing_is_created_where_it_can_t_be_written() {
    let stand = Stand::with_app().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("caddis.conf");
    let create = format!("wireguard create personal local laptop {}", path.display());
    stand.run(&create).await.ok();
    let before = fs::read_to_string(&path).unwrap();
    assert!(before.starts_with("[Interface]\nPrivateKey = "));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let twice = stand.run(&create.replace("laptop", "phone")).await;
    assert!(twice.to_string().contains("is already there"), "{twice}");
    let listed = stand.run("wireguard list --json").await.ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 1);

    let reset = format!("wireguard reset personal laptop {}", path.display());
    stand.run(&reset).await.ok();
    let after = fs::read_to_string(&path).unwrap();
    let rest = |text: &str| text.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
    assert_ne!(before, after);
    assert_eq!(rest(&before), rest(&after), "only the key is another");

    let written = stand.run(&format!("{reset} --json")).await.ok().json();
    assert_eq!(written["peer"]["name"], "laptop");
    assert_eq!(written["server"]["endpoint"], "vpn.example.com:51820");
    assert_eq!(written["file"], path.to_str().unwrap());
    assert_eq!(written.get("configuration"), None, "the private key is in the file only");
    let shown = stand.run("wireguard create personal local phone --json").await.ok().json();
    let configuration = shown["configuration"].as_str().unwrap();
    assert!(configuration.starts_with("[Interface]\nPrivateKey = "), "{configuration}");
    assert_eq!(shown.get("file"), None);
}
