//! Puts QEMU's own block drivers for tests below the qcow2 of a running VM's volume.

use std::{
    fs::File,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::DEADLINE;
use serde_json::{Value, json};

use crate::qmp::Qmp;

/// The volume's qcow2, which the driver opens, and where its secret is.
const VOLUME: &str = "machine-volume0";
const SECRET: &str = "key-volume0";
/// Beyond the sets of descriptors that the driver uses.
const SET: u32 = 900;

/// A VM that was just launched, and its volume.
pub struct Layers {
    pub qmp: Qmp,
    /// Node of the volume's file.
    file: String,
    is_encrypted: bool,
}

impl Layers {
    pub fn connect(directory: &Path, is_encrypted: bool) -> Result<Self> {
        let mut qmp = Qmp::connect(directory)?;
        let graph = qmp.execute("x-debug-query-block-graph", json!({}), &[])?;
        let nodes = graph["nodes"].as_array().context("nodes")?;
        let edges = graph["edges"].as_array().context("edges")?;
        let volume = nodes.iter().find(|node| node["name"] == VOLUME).context("a volume")?;
        let is_its = |edge: &&Value| edge["parent"] == volume["id"] && edge["name"] == "file";
        let edge = edges.iter().find(is_its).context("its file")?;
        let file = nodes.iter().find(|node| node["id"] == edge["child"]).context("its node")?;
        let file = file["name"].as_str().context("its name")?.to_owned();
        Ok(Self { qmp, file, is_encrypted })
    }

    /// Has all that is written to the volume's file be written to a log, too.
    pub fn log_to(&mut self, log: File) -> Result<()> {
        self.qmp.execute("add-fd", json!({ "fdset-id": SET }), &[log.into()])?;
        let log = json!({ "driver": "file", "filename": format!("/dev/fdset/{SET}") });
        let node = json!({
            "driver": "blklogwrites", "node-name": "log", "file": self.file, "log": log,
            "log-sector-size": 512,
        });
        self.qmp.execute("blockdev-add", node, &[])?;
        self.put_below("log")
    }

    /// Has the `count`th of the events from now on, named as blkdebug does, fail once for each of
    /// these reasons.
    pub fn fail(&mut self, event: &str, count: u32, errnos: &[i32]) -> Result<()> {
        let earlier = |state| json!({ "event": event, "state": state, "new_state": state + 1 });
        // A VM that stands still has all flushed, which is not to be what fails next.
        let iotype = if event == "flush_to_disk" { "flush" } else { "write" };
        let error = |errno| {
            json!({
                "event": event, "state": count, "errno": errno, "once": true, "iotype": iotype,
            })
        };
        let errors: Vec<_> = errnos.iter().map(error).collect();
        let mut node = json!({
            "driver": "blkdebug", "node-name": "faults", "image": self.file, "discard": "unmap",
            "inject-error": errors,
        });
        if count > 1 {
            node["set-state"] = (1..count).map(earlier).collect();
        }
        self.qmp.execute("blockdev-add", node, &[])?;
        self.put_below("faults")
    }

    /// Of an error that has met the volume's device since the last call, whether it is for want of
    /// room. The VM stands still then.
    pub fn stopped(&mut self) -> Result<Option<bool>> {
        let begun = Instant::now();
        loop {
            let status = self.qmp.execute("query-status", json!({}), &[])?;
            // The device's `io-status` stays at its first error.
            let is_error = |event: &&Value| event["event"] == "BLOCK_IO_ERROR";
            let Some(error) = self.qmp.events.iter().rfind(is_error) else { return Ok(None) };
            ensure!(error["data"]["action"] == "stop", "{error}");
            let is_full = error["data"]["nospace"] == true;
            if status["status"] == "io-error" {
                self.qmp.events.clear();
                return Ok(Some(is_full));
            }
            ensure!(begun.elapsed() < DEADLINE, "{error}, and it goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends that.
    pub fn work(&mut self) -> Result<()> {
        let file = self.file.clone();
        self.put_below(&file)?;
        self.qmp.execute("blockdev-del", json!({ "node-name": "faults" }), &[]).map(drop)
    }

    /// All else is as the driver has it.
    fn put_below(&mut self, node: &str) -> Result<()> {
        let mut volume = json!({
            "driver": "qcow2", "node-name": VOLUME, "backing": null, "file": node,
            "cache": { "direct": false, "no-flush": false }, "discard": "unmap",
            "detect-zeroes": "off",
        });
        if self.is_encrypted {
            volume["encrypt"] = json!({ "format": "luks", "key-secret": SECRET });
        }
        self.qmp.execute("blockdev-reopen", json!({ "options": [volume] }), &[]).map(drop)
    }
}
