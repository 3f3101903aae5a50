//! Debian's `docker-registry` on a port of the test's host.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{Host, Outside, command::run_command, process};

/// User that a registry with authentication knows.
pub const USER: &str = "tester";
/// The password.
pub const PASSWORD: &str = "secret";
/// `secret` under bcrypt, the only hash the registry takes; made by perl's `crypt`.
const HASHED: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// How a registry is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistryOptions {
    /// Asks for [`USER`] and [`PASSWORD`].
    pub authentication: bool,
    /// Is beyond the host and speaks HTTPS, with a certificate of an authority of its own; see
    /// [`Registry::authority`].
    pub tls: bool,
}

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    options: RegistryOptions,
    directory: PathBuf,
    address: String,
}

impl Registry {
    /// Starts one and returns when it listens.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub fn start(host: &Host, options: RegistryOptions) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("registry-").tempdir_in(host.directory())?.keep();
        let address = if options.tls { Outside::ADDRESS } else { "127.0.0.1" };
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: \
             {address}:0\n",
            directory.join("blobs").display()
        );
        if options.tls {
            make_certificates(&directory)?;
            let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                certificate.display(),
                key.display()
            );
        }
        if options.authentication {
            let users = directory.join("htpasswd");
            fs::write(&users, format!("{USER}:{HASHED}\n"))?;
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
        }
        let file = directory.join("config.yml");
        fs::write(&file, config)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if options.tls {
            command.arg("nsenter").arg(format!("--net={}", host.outside().namespace().display()));
        }
        command.args(["docker-registry", "serve"]).arg(file);
        command
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child =
            command.spawn().context("starting docker-registry; scripts/setup.sh installs it")?;
        let mut registry = Self { child, options, directory, address: String::new() };
        let mut log = BufReader::new(registry.child.stderr.take().context("the registry's log")?);
        let port = listening_port(&mut log, address)?;
        registry.address = format!("{address}:{port}");
        // It blocks when nobody reads its log.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(registry)
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Certificate of the authority to be trusted, PEM.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// Pushes an image from an OCI layout and returns its reference.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn push(&self, layout: &Path, name: &str) -> Result<String> {
        let reference = format!("{}/{name}", self.address);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        if self.options.authentication {
            command.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        run_command(
            command.arg(format!("oci:{}", layout.display())).arg(format!("docker://{reference}")),
        )?;
        Ok(reference)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        process::end(self.child.id().cast_signed());
    }
}

/// From the line `… msg="listening on 127.0.0.1:PORT" …` or `… 127.0.0.1:PORT, tls"`.
fn listening_port(log: &mut impl BufRead, address: &str) -> Result<u16> {
    let words = format!("listening on {address}:");
    let mut seen = String::new();
    for line in log.lines() {
        let line = line.context("reading the registry's log")?;
        if let Some((_, rest)) = line.split_once(&words) {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return digits.parse().with_context(|| format!("no port in {line}"));
        }
        seen += &line;
        seen.push('\n');
    }
    bail!("docker-registry ended at start: {seen}")
}

/// An authority, and a certificate of it for [`Outside::ADDRESS`].
fn make_certificates(directory: &Path) -> Result<()> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        run_command(command.current_dir(directory).args(arguments.split(' ')))
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!(
        "req -x509 {key} -keyout authority.key -out authority.pem -subj /CN=authority"
    ))?;
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=registry"))?;
    fs::write(directory.join("names"), format!("subjectAltName=IP:{}\n", Outside::ADDRESS))?;
    openssl(
        "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -extfile \
         names -days 2 -out server.pem",
    )?;
    Ok(())
}
