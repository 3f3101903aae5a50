//! A user's computer beside a test's host: network, mounts and processes of its own, with the
//! programs of the host and Debian's openresolv, which writes its `/etc/resolv.conf`.
//!
//! ```text
//!  test's host ─ to-computer-N ══ veth ══ out ─ computer: /run, /etc and /usr of its own
//! ```

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Host, command::run_command, images, run};

/// What the first process does: `$0` has the files of openresolv, `$1` room for what is written.
const FIRST: &str = r#"
mount -t tmpfs tmpfs "$1"
mount -t tmpfs tmpfs /run
for part in etc usr; do
    mkdir "$1/$part" "$1/$part.work"
    mount -t overlay overlay -o "lowerdir=$0/$part:/$part,upperdir=$1/$part,workdir=$1/$part.work" \
        "/$part"
done
echo '# nobody to ask' >/etc/resolv.conf
ip link set lo up
echo ready
exec sleep infinity
"#;

/// See the module's text. Its processes end when it is dropped, and with the test.
#[derive(Debug)]
pub struct Computer {
    holder: Child,
    /// Process id of the first process.
    first: String,
    number: u8,
}

impl Computer {
    /// Starts one and connects it with the host. `number` tells those of a test apart.
    ///
    /// # Errors
    /// When Debian's packages are missing that `scripts/setup.sh` installs, or openresolv can't be
    /// had.
    pub fn start(host: &Host, number: u8) -> Result<Self> {
        let programs = images::openresolv()?;
        let room = host.path(&format!("computer-{number}"));
        std::fs::create_dir(&room).context("making a computer's directory")?;
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc", "--", "sh", "-ec", FIRST])
            .args([&programs, &room])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a computer")?;
        let output = holder.stdout.take().context("the output of a computer")?;
        let (id, mut said) = (holder.id(), String::new());
        let mut computer = Self { holder, first: String::new(), number };
        BufReader::new(output).read_line(&mut said).context("reading what a computer says")?;
        ensure!(said == "ready\n", "a computer did not start");
        let children = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(children).context("finding a computer's process")?;
        computer.first = children.trim().to_owned();
        computer.connect()?;
        Ok(computer)
    }

    fn connect(&self) -> Result<()> {
        let link = format!("to-computer-{}", self.number);
        let veth = ["type", "veth", "peer", "name", "out", "netns", &self.first];
        run(["ip", "link", "add", &link].into_iter().chain(veth))?;
        let own = format!("{}/24", self.address());
        run(["ip", "address", "add", &format!("{}/24", self.host_address()), "dev", &link])?;
        run(["ip", "link", "set", &link, "up"])?;
        self.run(&["ip", "address", "add", &own, "dev", "out"])?;
        self.run(&["ip", "link", "set", "out", "up"])?;
        self.run(&["ip", "route", "add", "default", "via", &self.host_address()])?;
        Ok(())
    }

    fn address(&self) -> String {
        format!("10.99.{}.2", self.number)
    }

    fn host_address(&self) -> String {
        format!("10.99.{}.1", self.number)
    }

    /// Runs a program there.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--net", "--mount", "--pid", "--"]);
        run_command(command.args(words))
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        // Takes the others along.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
