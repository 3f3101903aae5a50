//! What people run, as Debian has it: each answers from the host, and each file is what podman
//! makes of it. In the long form only, since the image takes minutes to build.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use caddis_testkit::{DEADLINE, Host, Machine, images, run};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::stand::{Stand, is_short};

/// A service: how it is run, and what proves that it works.
struct Service {
    name: &'static str,
    user: &'static str,
    command: &'static [&'static str],
    port: u16,
    /// What is said to it, and what its answer holds.
    exchange: (&'static [u8], &'static [u8]),
    files: &'static [(&'static str, &'static str, u32)],
}

const HTTP: &[u8] = b"GET / HTTP/1.0\r\nHost: x\r\n\r\n";

const SERVICES: [Service; 7] = [
    Service {
        name: "nginx",
        user: "",
        command: &["nginx", "-g", "daemon off;"],
        port: 80,
        exchange: (HTTP, b"Welcome to nginx!"),
        files: &[],
    },
    Service {
        name: "php-fpm",
        user: "",
        command: &["/bin/sh", "-c", "exec /usr/sbin/php-fpm* -F -O -y /srv/fpm.conf"],
        port: 9000,
        exchange: (FASTCGI, b"php says 42"),
        files: &[
            (
                "/srv/fpm.conf",
                "[www]\nuser=www-data\ngroup=www-data\nlisten=9000\npm=static\npm.max_children=2\n",
                0o644,
            ),
            ("/srv/a.php", "<?php echo \"php says \" . 6 * 7;", 0o644),
        ],
    },
    Service {
        name: "redis",
        user: "redis:redis",
        command: &["redis-server", "--protected-mode", "no", "--bind", "*", "-::*"],
        port: 6379,
        exchange: (b"PING\r\n", b"+PONG"),
        files: &[],
    },
    Service {
        name: "postgres",
        user: "postgres",
        command: &["/bin/sh", "/srv/postgres"],
        port: 5432,
        // SSLRequest, which is answered with S or N; here there is a certificate.
        exchange: (&[0, 0, 0, 8, 4, 210, 22, 47], b"S"),
        files: &[(
            "/srv/postgres",
            "cd /usr/lib/postgresql/*/bin && v=$(basename $(dirname $PWD)) && \
             exec ./postgres -D /var/lib/postgresql/$v/main -c \
             config_file=/etc/postgresql/$v/main/postgresql.conf \
             -c listen_addresses='*' -c unix_socket_directories=/tmp\n",
            0o644,
        )],
    },
    Service {
        name: "node",
        user: "nobody",
        command: &[
            "node",
            "-e",
            "require('http').createServer((q, r) => r.end('node ' + 6 * 7)).listen(8080, '::')",
        ],
        port: 8080,
        exchange: (HTTP, b"node 42"),
        files: &[],
    },
    Service {
        name: "python",
        user: "1001",
        command: &["python3", "-m", "http.server", "8080", "--bind", "::"],
        port: 8080,
        exchange: (HTTP, b"Directory listing for /"),
        files: &[],
    },
    Service {
        name: "s6",
        user: "",
        // As s6-overlay begins: a script at this place that becomes the supervisor.
        command: &["/init"],
        port: 8081,
        exchange: (HTTP, b"Directory listing for /"),
        files: &[
            (
                "/init",
                "#!/bin/sh -e\n# s6-svscan has to be process 1\n[ $$ = 1 ]\nexec s6-svscan \
                 /srv/s6\n",
                0o755,
            ),
            ("/srv/s6/web/run", "#!/bin/sh\nexec python3 -m http.server 8081 --bind ::\n", 0o755),
        ],
    },
];

/// A request for `/srv/a.php`: begin, parameters, their end, the end of the input.
const FASTCGI: &[u8] = b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0\
    \x01\x04\0\x01\0\x41\0\0\
    \x0f\x0aSCRIPT_FILENAME/srv/a.php\x0e\x03REQUEST_METHODGET\x0b\x06SCRIPT_NAME/a.php\
    \x01\x04\0\x01\0\0\0\0\x01\x05\0\x01\0\0\0\0";

fn config(image: &str, service: &Service) -> Value {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let files = service.files.iter();
    let files: Vec<_> = files
        .map(|(path, text, mode)| {
            json!({ "guest_path": path, "raw_value": base64(text), "mode": mode })
        })
        .collect();
    json!({
        "image": image,
        "guest": { "memory_mb": 512 },
        "restart": { "policy": "no" },
        // As s6-overlay's, its program is process 1 only where it is the machine's one.
        "init": { "exec": if service.user.is_empty() { service.command } else { &[][..] } },
        "processes": if service.user.is_empty() { json!([]) } else {
            json!([{ "exec": service.command, "user": service.user }])
        },
        "files": files,
    })
}

/// Says something to a service until its answer holds what it should: nothing tells when it begins
/// to listen.
async fn answers(machine: &Machine, service: &Service) -> Result<()> {
    let address = format!("[{}]:{}", machine.address().await?, service.port);
    let (said, expected) = service.exchange;
    let deadline = Instant::now() + DEADLINE;
    let mut last = Vec::new();
    while Instant::now() < deadline {
        last.clear();
        let exchange = async {
            let mut stream = TcpStream::connect(&address).await?;
            stream.write_all(said).await?;
            let mut part = [0; 4096];
            while !last.windows(expected.len()).any(|window| window == expected) {
                match stream.read(&mut part).await? {
                    0 => break,
                    count => last.extend_from_slice(&part[..count]),
                }
            }
            std::io::Result::Ok(())
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), exchange).await;
        if last.windows(expected.len()).any(|window| window == expected) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let (answer, logs) = (String::from_utf8_lossy(&last).into_owned(), machine.logs().await?);
    anyhow::bail!("{} does not answer as it should: {answer:?}, and says {logs:#?}", service.name)
}

#[tokio::test]
async fn services_as_debian_has_them_answer_from_the_host_and_end_when_told() -> Result<()> {
    if is_short() {
        return Ok(());
    }
    let layout = images::services()?;
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&layout, "services:1")?;
    for service in &SERVICES {
        let machine = stand.machine(config(&image, service)).await?;
        answers(&machine, service).await.context(service.name)?;
        machine.stop().await?;
        machine.wait("stopped").await?;
        let exit = machine.exit_event().await?;
        assert_eq!(exit["requested_stop"], true, "{}: {exit}", service.name);
        machine.destroy().await?;
    }
    Ok(())
}

/// What of a machine's files is not its image's: what is mounted or written for it at each start.
const OF_THE_MACHINE: [&str; 10] = [
    "",
    ".caddis",
    "dev",
    "proc",
    "sys",
    "etc/hosts",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "run",
];

/// Of each file: kind, mode, owner, size and number of names (not of directories, where file
/// systems differ), where it leads to, time.
const FACTS: &str =
    "-type d -printf '%P|%y|%m|%U|%G|||%l|%T@\\n' -o -printf '%P|%y|%m|%U|%G|%s|%n|%l|%T@\\n'";

fn facts(list: &str) -> BTreeMap<&str, &str> {
    let lines = list.lines().filter_map(|line| line.split_once('|'));
    let is_of_image = |path: &str| {
        !OF_THE_MACHINE.iter().any(|other| {
            path == *other || path.starts_with(&format!("{other}/")) && !other.is_empty()
        })
    };
    lines.filter(|(path, _)| is_of_image(path)).collect()
}

/// What podman makes of an image, listed as root sees it.
fn of_podman(layout: &Path, directory: &Path) -> Result<String> {
    let (root, state) = (directory.join("root"), directory.join("state"));
    let options = format!(
        "podman --root {} --runroot {} --storage-driver vfs",
        root.display(),
        state.display()
    );
    let script = format!(
        "set -e; image=$({options} pull --quiet oci:{}); tree=$({options} image mount $image); \
         find \"$tree\" {FACTS}; {options} image unmount $image >/dev/null",
        layout.display()
    );
    run(["sh", "-c", &script])
}

#[tokio::test]
async fn every_file_is_what_podman_makes_of_it() -> Result<()> {
    if is_short() {
        return Ok(());
    }
    let layout = images::services()?;
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&layout, "services:1")?;
    let machine = stand.machine(json!({ "image": image, "guest": { "memory_mb": 512 } })).await?;
    machine.wait("started").await?;
    machine.shell(&format!("find / -xdev {FACTS} >/dev/shm/list")).await?;
    let (list, id) = (host.path("list"), machine.id());
    let path = list.to_str().context("a path")?;
    let got = stand
        .server
        .cli(&["sftp", "get", "/dev/shm/list", path, "-a", "test", "--machine", id])
        .await?;
    ensure!(got.code == Some(0), "{got:?}");
    let (ours, theirs) = (fs::read_to_string(&list)?, of_podman(&layout, &host.path("podman"))?);
    let (ours, theirs) = (facts(&ours), facts(&theirs));
    ensure!(theirs.len() > 5000, "{} files", theirs.len());
    let all: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differ = all.into_iter().filter(|path| ours.get(*path) != theirs.get(*path));
    let differ: Vec<_> = differ
        .map(|path| format!("{path}: {:?}, podman {:?}", ours.get(path), theirs.get(path)))
        .collect();
    assert!(
        differ.is_empty(),
        "{} of {} differ: {:#?}",
        differ.len(),
        theirs.len(),
        &differ[..differ.len().min(30)]
    );
    Ok(())
}
