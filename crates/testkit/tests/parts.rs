//! The parts that tests stand on, tried without a server.

use caddis_testkit::{
    Api, Host, Outside, PASSWORD, Registry, RegistryOptions, USER, images, process, run,
};
use tokio::net::UdpSocket;

#[tokio::test]
async fn the_outside_answers_http_datagrams_and_names() {
    let host = Host::new().await.unwrap();
    for (url, seen_as) in [
        (format!("http://{}", Outside::ADDRESS), Host::ADDRESS),
        (format!("http://[{}]", Outside::ADDRESS_V6), Host::ADDRESS_V6),
        (format!("http://{}", Outside::LAN_ADDRESS), "192.168.77.2"),
        // By its name, through the host's own resolv.conf.
        (format!("http://{}", Outside::NAME), Host::ADDRESS),
    ] {
        let reply = Api::new(url.clone(), None).unwrap().get("/").await.unwrap();
        assert_eq!(reply.text, format!("you are {seen_as}\n"), "{url}");
    }
    assert!(run(["getent", "ahostsv4", "unknown.test"]).is_err());

    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.send_to(b"ping", (Outside::ADDRESS, Outside::UDP_PORT)).await.unwrap();
    let seen = host.outside().datagrams_until(b"ping").await.unwrap();
    assert_eq!(
        seen[0].source,
        format!("{}:{}", Host::ADDRESS, socket.local_addr().unwrap().port()).parse().unwrap()
    );
    assert_eq!(host.outside().run(&["cat", "/proc/sys/net/ipv4/ip_forward"]).unwrap(), "0\n");
}

#[tokio::test]
async fn hosts_are_apart_from_each_other_and_from_the_machine() {
    let before = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let in_thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _host = Host::new().await.unwrap();
            (
                run(["ip", "-o", "link"]).unwrap(),
                std::fs::read_to_string("/etc/resolv.conf").unwrap(),
            )
        })
    });
    let (links, resolv) = in_thread.join().unwrap();
    assert_eq!(
        links.lines().filter(|line| line.contains("uplink") || line.contains(": lo")).count(),
        2,
        "{links}"
    );
    assert_eq!(resolv, format!("nameserver {}\n", Outside::ADDRESS));
    assert!(!run(["ip", "-o", "link"]).unwrap().contains("uplink"));
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap(), before);
}

#[tokio::test]
async fn a_registry_takes_images_and_asks_for_the_password() {
    let host = Host::new().await.unwrap();
    let layout = images::web().unwrap();
    let open = Registry::start(&host, RegistryOptions::default()).unwrap();
    open.push(&layout, "web:1").unwrap();
    let api = Api::new(format!("http://{}", open.address()), None).unwrap();
    assert_eq!(api.get("/v2/web/tags/list").await.unwrap().ok().unwrap()["tags"][0], "1");

    let closed =
        Registry::start(&host, RegistryOptions { authentication: true, ..Default::default() })
            .unwrap();
    closed.push(&layout, "web:1").unwrap();
    let api = Api::new(format!("http://{}", closed.address()), None).unwrap();
    assert_eq!(api.get("/v2/web/tags/list").await.unwrap().status, 401);
    let credentials = format!("--creds={USER}:{PASSWORD}");
    let image = format!("docker://{}/web:1", closed.address());
    run(["skopeo", "inspect", "--tls-verify=false", &credentials, &image]).unwrap();
}

#[tokio::test]
async fn a_registry_with_tls_is_trusted_by_its_authority_only() {
    let host = Host::new().await.unwrap();
    let registry =
        Registry::start(&host, RegistryOptions { tls: true, ..Default::default() }).unwrap();
    let url = format!("https://{}/v2/", registry.address());
    let authority = registry.authority();
    run(["curl", "-sSf", "--noproxy", "*", "--cacert", authority.to_str().unwrap(), &url]).unwrap();
    assert!(run(["curl", "-sSf", "--noproxy", "*", &url]).is_err());
}

#[tokio::test]
async fn an_image_becomes_archives() {
    let directory = tempfile::tempdir().unwrap();
    let layout = images::busybox().unwrap();
    for kind in ["docker-archive", "oci-archive"] {
        let file = format!("{kind}:{}", directory.path().join(kind).display());
        images::convert(&layout, &format!("{file}:busybox:1")).unwrap();
        assert!(run(["skopeo", "inspect", "--config", &file]).unwrap().contains("trap 'exit 0'"));
    }
}

#[test]
fn a_process_that_works_in_a_directory_is_found_and_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .current_dir(directory.path())
        .spawn()
        .unwrap();
    let pid = child.id().cast_signed();
    assert_eq!(process::holders(directory.path()).into_iter().collect::<Vec<_>>(), [pid]);
    process::end(pid);
    assert!(process::holders(directory.path()).is_empty());
    assert!(child.wait().is_err(), "it was awaited already");
}
