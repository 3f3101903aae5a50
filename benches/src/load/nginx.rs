//! nginx before a server, with what it needs to keep up: a worker for each processor that a proxy
//! under measurement has, connections to the server that stay open, no access log. Debian's package
//! `nginx`.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{place::Place, server_log::ServerLog};

/// Its port for HTTP; each nginx has a network of its own.
pub const HTTP: u16 = 8081;
/// Its port for HTTPS.
pub const HTTPS: u16 = 8444;
/// Client connections and those to the server of one worker.
const CONNECTIONS: usize = 12_000;

/// A running nginx. Its workers end with it.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    _log: ServerLog,
}

impl Nginx {
    /// Starts it on an empty `directory` and returns when it listens.
    ///
    /// # Errors
    /// When it is not installed or refuses its configuration.
    pub async fn start(place: &Place, directory: &Path, upstream: u16) -> Result<Self> {
        std::fs::create_dir(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
        // The kind of key that the proxy makes.
        caddis_testkit::run([
            "openssl".as_ref(),
            "req".as_ref(),
            "-x509".as_ref(),
            "-newkey".as_ref(),
            "ec".as_ref(),
            "-pkeyopt".as_ref(),
            "ec_paramgen_curve:prime256v1".as_ref(),
            "-nodes".as_ref(),
            "-subj".as_ref(),
            "/CN=localhost".as_ref(),
            "-keyout".as_ref(),
            key.as_os_str(),
            "-out".as_ref(),
            certificate.as_os_str(),
        ])?;
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration(directory, super::servers()?.len(), upstream))
            .with_context(|| format!("writing {}", file.display()))?;
        let mut command = Command::new(std::env::current_exe().context("finding our own file")?);
        command.args(["nginx", "--configuration"]).arg(file);
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = place.run(move || command.spawn())?.context("starting ourselves")?;
        let log = ServerLog::new(child.stderr.take().context("the log of nginx")?);
        let nginx = Self { child, _log: log };
        // It listens before it starts workers, and the kernel keeps what connects before them.
        nginx
            ._log
            .wait(0, |line| line.contains("start worker process "))
            .await
            .context("nginx did not start")?;
        Ok(nginx)
    }

    /// Process id of the one whose children the workers are.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Makes this process nginx.
///
/// # Errors
/// Always, as otherwise there is nobody left to return to.
pub fn become_nginx(configuration: &Path) -> Result<()> {
    let error = Command::new("nginx").arg("-c").arg(configuration).exec();
    Err(error).context("becoming nginx; scripts/setup.sh nginx installs it")
}

/// Files that its workers keep open are in the directory, so that a later run finds workers that
/// were left.
fn configuration(directory: &Path, workers: usize, upstream: u16) -> String {
    let directory = directory.display();
    let fields = "proxy_set_header Host $host;
            proxy_set_header Connection '';
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;";
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {directory}/{kind};\n"))
        .collect();
    format!(
        "daemon off;
worker_processes {workers};
pid {directory}/pid;
error_log stderr notice;
error_log {directory}/error.log;
events {{ worker_connections {CONNECTIONS}; }}
http {{
    access_log off;
{temporary}    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    upstream server {{
        server 127.0.0.1:{upstream};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{HTTP} backlog=4096;
        listen 127.0.0.1:{HTTPS} ssl backlog=4096;
        server_name *.localhost;
        ssl_certificate {directory}/certificate.pem;
        ssl_certificate_key {directory}/key.pem;
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            {fields}
        }}
    }}
}}
"
    )
}
