//! Trees of a real distribution: Debian's minbase with packages, built by mmdebstrap from the
//! machine's own mirror.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Config, Layer, cached, write_layout};
use crate::command::run_command;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Debian with nginx, which listens on port 80 and is asked to end with SIGQUIT, as the well-known
/// image is. The first build takes one to two minutes.
///
/// # Errors
/// When mmdebstrap fails.
pub fn debian() -> Result<PathBuf> {
    let config = Config {
        cmd: ["nginx", "-g", "daemon off;"].map(Into::into).to_vec(),
        stop_signal: "SIGQUIT".into(),
        exposed_ports: json!({ "80/tcp": {} }),
        ..Config::default()
    };
    build("debian", &["nginx-light"], config)
}

/// Debian with programs that want more of a kernel than most: Docker, FUSE, WireGuard, nftables,
/// `modprobe`. Sleeps.
///
/// # Errors
/// When mmdebstrap fails.
pub fn kernel_user() -> Result<PathBuf> {
    let packages = [
        "docker.io",
        "busybox-static",
        "bindfs",
        "wireguard-tools",
        "nftables",
        "iproute2",
        "kmod",
    ];
    let config = Config { cmd: ["sleep", "1000000"].map(Into::into).to_vec(), ..Config::default() };
    build("kernel-user", &packages, config)
}

/// Debian as it boots on a machine of its own: systemd with its bus and nginx as a unit; runit is
/// there, too.
///
/// # Errors
/// When mmdebstrap fails.
pub fn systemd() -> Result<PathBuf> {
    let packages = ["systemd-sysv", "dbus", "nginx-light", "runit", "procps"];
    let config = Config { cmd: vec!["/sbin/init".into()], ..Config::default() };
    build("systemd", &packages, config)
}

/// Debian with what most services are made of: nginx, php-fpm, redis, PostgreSQL (with a cluster),
/// node, python, s6. Sleeps. The build takes minutes.
///
/// # Errors
/// When mmdebstrap fails.
pub fn services() -> Result<PathBuf> {
    let packages =
        ["nginx-light", "php-fpm", "redis-server", "postgresql", "nodejs", "python3", "s6"];
    let config = Config { cmd: ["sleep", "1000000"].map(Into::into).to_vec(), ..Config::default() };
    build("services", &packages, config)
}

/// Debian's PostgreSQL as the well-known image of it behaves: it makes a cluster in `PGDATA` at the
/// first start, with the password `POSTGRES_PASSWORD`, and listens on port 5432.
///
/// # Errors
/// When mmdebstrap fails.
pub fn postgres() -> Result<PathBuf> {
    let config = Config {
        entrypoint: ["/bin/sh", "-ec", POSTGRES].map(Into::into).to_vec(),
        stop_signal: "SIGINT".into(),
        exposed_ports: json!({ "5432/tcp": {} }),
        ..Config::default()
    };
    build("postgres", &["postgresql"], config)
}

/// Its program. Local connections are trusted, others need the password.
const POSTGRES: &str = r#"
cd /usr/lib/postgresql/*/bin
PATH="$PWD:$PATH"
export PGDATA="${PGDATA:-/var/lib/postgresql/data}"
mkdir -p "$PGDATA" /run/postgresql
chown postgres "$PGDATA" /run/postgresql
chmod 700 "$PGDATA"
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s\n' "$POSTGRES_PASSWORD" >/run/password
    chown postgres /run/password
    as_postgres initdb --username=postgres --pwfile=/run/password --auth-local=trust \
        --auth-host=scram-sha-256
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    rm /run/password
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -c listen_addresses='*'
"#;

/// A tree of packages.
fn build(name: &str, packages: &[&str], mut config: Config) -> Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").context("which Debian this is")?;
    let suite =
        release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
    config.env = vec![PATH.into()];
    let config_text = serde_json::to_string(&config)?;
    let recipe = format!("{}{packages:?}{suite}{config_text}", include_str!("debian.rs"));
    cached(name, &recipe, |layout| {
        let tree = layout.with_extension("tar");
        // Build in the namespaces of the process, not in those of a test's host, which has no way
        // to a mirror.
        let process = std::process::id();
        let mut build = Command::new("nsenter");
        build
            .arg(format!("--net=/proc/{process}/ns/net"))
            .arg(format!("--mount=/proc/{process}/ns/mnt"));
        build.args([
            "--",
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--format=tar",
        ]);
        build.args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
        ]);
        build.args([
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--aptopt=Acquire::Languages \"none\"",
        ]);
        build.arg(format!("--include={}", packages.join(",")));
        build.arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/*");
        build.arg(suite).arg(&tree).arg(mirror(suite)?);
        run_command(&mut build)?;
        write_layout(layout, &[Layer::File(tree)], &config)
    })
}

/// Where this machine gets its own packages from.
fn mirror(suite: &str) -> Result<String> {
    let sources =
        ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let sources = run_command(Command::new("apt-get").args(sources))?;
    let wanted = format!(" {suite} main");
    let found = sources.lines().find_map(|line| line.strip_suffix(&wanted));
    Ok(found.unwrap_or("http://deb.debian.org/debian").to_owned())
}
