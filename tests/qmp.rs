//! QEMU's control protocol, for what no driver has to do. QEMU serves one connection at a time:
//! this one is to be made right after a launch, before the driver listens, which then waits.

use std::{
    io::{BufRead as _, BufReader, IoSlice},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// A connection.
pub struct Qmp {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// What it has told by itself.
    pub events: Vec<Value>,
}

impl Qmp {
    /// Connects to the VM of the machine with this directory.
    pub fn connect(directory: &Path) -> Result<Self> {
        let stream = UnixStream::connect(directory.join("qmp.sock"))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut this = Self { stream, reader, events: Vec::new() };
        this.line()?;
        this.execute("qmp_capabilities", json!({}), &[])?;
        Ok(this)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(!line.is_empty(), "QEMU has ended");
        Ok(serde_json::from_str(&line)?)
    }

    pub fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        descriptors: &[OwnedFd],
    ) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let numbers: Vec<_> = descriptors.iter().map(|file| file.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let (number, bytes) = (self.stream.as_raw_fd(), [IoSlice::new(text.as_bytes())]);
        sendmsg::<()>(number, &bytes, rights, MsgFlags::empty(), None)?;
        loop {
            let mut line = self.line()?;
            ensure!(line.get("error").is_none(), "{command}: {}", line["error"]);
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            self.events.push(line);
        }
    }

    /// The device over the node of this name.
    pub fn device(&mut self, node: &str) -> Result<Value> {
        let devices = self.execute("query-block", json!({}), &[])?;
        let mut devices = devices.as_array().context("devices")?.iter();
        let device = devices.find(|device| device["inserted"]["node-name"] == node);
        device.cloned().with_context(|| format!("a device over {node}"))
    }
}
