//! Snapshots of volumes: an instant of one is read over NBD while its guest writes on.
//!
//! Before the guest overwrites anything, what was there is copied to the fleecing image
//! (`copy-before-write`), and the export reads from there or from the volume (`snapshot-access`).
//! Where that copy fails or takes too long it is the snapshot that breaks: its readers get errors,
//! and the guest's write is carried out.
//!
//! What changes is noted in dirty bitmaps, which live as long as the process:
//!
//! ```text
//! since-A                 changed since snapshot A; recording
//! prepare B open-B        added before the instant: it has no less than what changes after it
//! begin B                 the instant
//! export B  since-A       stops recording, and is exported
//! end       taken         since-B := open-B; open-B and since-A are removed, in one transaction
//!           not taken     since-A records on, with open-B merged into it
//! ```
//! So a bitmap may have more than has changed, and never less.
//!
//! The guest is held still for one command, that of the instant. What comes before it and after it
//! is done while the guest writes.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    add_secret,
    layout::{Bitmap, Names, Nodes, Part},
};
use crate::{
    PointInTime, VmmError, VolumeExport,
    qemu::{
        disks::{fleecing_set, over},
        launch::NBD_SOCKET,
        qmp::Qmp,
    },
    socket, volume,
};

/// How long a write of the guest may wait for what it overwrites to be copied, seconds.
const COPY_TIMEOUT: u64 = 10;
/// Bitmaps of a snapshot that is open, and of one that was taken.
const OPEN: &str = "open-";
const SINCE: &str = "since-";

/// Does what a snapshot needs and can be done before its instant. Names the bitmaps that are to
/// record no more then.
pub(in crate::qemu) fn prepare(
    qmp: &mut Qmp,
    directory: &Path,
    index: u8,
    point: &PointInTime,
) -> Result<Vec<String>, VmmError> {
    let names = Names::of(index);
    let nodes = Nodes::query(qmp).map_err(names.failed("snapshot"))?;
    nodes.size(&names)?;
    let bitmaps = nodes.bitmaps(&names);
    if nodes.has(&names, Part::Backing) {
        return Err(names.refused(volume::RESTORING));
    }
    let is_open = |bitmap: &Bitmap| bitmap.name.starts_with(OPEN);
    if nodes.is_snapshot_open(&names) || bitmaps.iter().any(is_open) {
        return Err(names.refused(volume::SNAPSHOT_OPEN));
    }
    let prepared = try_prepare(qmp, directory, &names, point);
    ended_unless(prepared, qmp, directory, &names)?;
    Ok(bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

/// The instant: from here on what the guest overwrites is copied first.
pub(in crate::qemu) fn begin(qmp: &mut Qmp, directory: &Path, index: u8) -> Result<(), VmmError> {
    let names = Names::of(index);
    let begun = try_begin(qmp, &names);
    ended_unless(begun, qmp, directory, &names)
}

/// Has a volume be readable as it was at the instant, with what has changed since the previous
/// snapshot where one of the bitmaps is of that.
pub(in crate::qemu) fn export(
    qmp: &mut Qmp,
    directory: &Path,
    index: u8,
    previous: Option<&str>,
    bitmaps: &[String],
) -> Result<VolumeExport, VmmError> {
    let names = Names::of(index);
    let exported = try_export(qmp, directory, &names, previous, bitmaps);
    ended_unless(exported, qmp, directory, &names)
}

/// Leaves nothing of a snapshot that failed.
fn ended_unless<T>(
    done: io::Result<T>,
    qmp: &mut Qmp,
    directory: &Path,
    names: &Names,
) -> Result<T, VmmError> {
    done.map_err(|error| {
        // Best effort: the first error is the one that matters, and who ends it tries again.
        let _ = try_end(qmp, directory, names, false);
        names.failed("snapshot")(error)
    })
}

fn try_prepare(
    qmp: &mut Qmp,
    directory: &Path,
    names: &Names,
    point: &PointInTime,
) -> io::Result<()> {
    let node = names.part(Part::Machine);
    let (fleecing, key) = (names.part(Part::Fleecing), names.part(Part::FleecingKey));
    let filter = names.part(Part::Filter);
    listen(qmp, directory)?;
    let set = fleecing_set(names.role());
    qmp.add_descriptor(set, point.fleecing.as_fd())?;
    if let Some(passphrase) = &point.passphrase {
        add_secret(qmp, &key, passphrase)?;
    }
    qmp.execute("blockdev-add", fleecing_image(&fleecing, set, point, &key))?;
    let before_write = json!({
        "driver": "copy-before-write", "node-name": filter, "file": node, "target": fleecing,
        "on-cbw-error": "break-snapshot", "cbw-timeout": COPY_TIMEOUT,
    });
    qmp.execute("blockdev-add", before_write)?;
    let open = json!({ "node": node, "name": format!("{OPEN}{}", point.id) });
    qmp.execute("block-dirty-bitmap-add", open).map(drop)
}

fn try_begin(qmp: &mut Qmp, names: &Names) -> io::Result<()> {
    let filter = names.part(Part::Filter);
    let options = json!({ "options": [over(names.role(), json!(filter))] });
    qmp.execute("blockdev-reopen", options).map(drop)
}

fn try_export(
    qmp: &mut Qmp,
    directory: &Path,
    names: &Names,
    previous: Option<&str>,
    bitmaps: &[String],
) -> io::Result<VolumeExport> {
    let node = names.part(Part::Machine);
    let (filter, snapshot) = (names.part(Part::Filter), names.part(Part::Snapshot));
    let frozen = bitmaps.iter().map(|bitmap| change("disable", &node, bitmap));
    transaction(qmp, frozen.collect())?;
    let access =
        json!({ "driver": "snapshot-access", "node-name": snapshot, "file": filter.as_str() });
    qmp.execute("blockdev-add", access)?;
    let previous = previous.map(|id| format!("{SINCE}{id}"));
    let changed = previous.filter(|name| bitmaps.contains(name));
    let exported: Vec<_> =
        changed.iter().map(|name| json!({ "node": node, "name": name })).collect();
    let export = json!({
        "type": "nbd", "id": snapshot, "node-name": snapshot, "name": names.slot,
        "writable": false, "bitmaps": exported,
    });
    qmp.execute("block-export-add", export)?;
    Ok(VolumeExport { socket: directory.join(NBD_SOCKET), name: names.slot.clone(), changed })
}

/// The image is of no use to anybody when its process is gone.
fn fleecing_image(node: &str, set: u32, point: &PointInTime, key: &str) -> Value {
    let cache = json!({ "direct": false, "no-flush": true });
    let mut image = json!({
        "driver": "qcow2", "node-name": node, "backing": null, "cache": cache,
        "file": {
            "driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off",
            "cache": cache,
        },
    });
    if point.passphrase.is_some() {
        image["encrypt"] = json!({ "format": "luks", "key-secret": key });
    }
    image
}

/// Has the process serve what it exports, on a socket that it can't reach by its path.
fn listen(qmp: &mut Qmp, directory: &Path) -> io::Result<()> {
    if !exports(qmp)?.is_empty() {
        return Ok(());
    }
    // One of a server that was killed before anything was exported; else there is none to stop.
    let _ = qmp.execute("nbd-server-stop", json!({}));
    let socket = socket::listen(directory, NBD_SOCKET).map_err(io::Error::other)?;
    let named: BorrowedFd<'_> = socket.as_fd();
    qmp.give("nbd", named)?;
    let address = json!({ "type": "fd", "data": { "str": "nbd" } });
    qmp.execute("nbd-server-start", json!({ "addr": address })).map(drop)
}

/// Ids of what the process exports.
fn exports(qmp: &mut Qmp) -> io::Result<Vec<String>> {
    let exports = qmp.execute("query-block-exports", json!({}))?;
    let exports = exports.as_array().into_iter().flatten();
    Ok(exports.filter_map(|export| Some(export.get("id")?.as_str()?.to_owned())).collect())
}

/// Ends the snapshot of a volume, if one is open or was begun to be.
pub(in crate::qemu) fn end(
    qmp: &mut Qmp,
    directory: &Path,
    index: u8,
    is_taken: bool,
) -> Result<(), VmmError> {
    let names = Names::of(index);
    try_end(qmp, directory, &names, is_taken).map_err(names.failed("end the snapshot of"))
}

fn try_end(qmp: &mut Qmp, directory: &Path, names: &Names, is_taken: bool) -> io::Result<()> {
    let node = names.part(Part::Machine);
    let snapshot = names.part(Part::Snapshot);
    if exports(qmp)?.contains(&snapshot) {
        qmp.delete_export(&snapshot)?;
    }
    let nodes = Nodes::query(qmp)?;
    let delete = |qmp: &mut Qmp, part: Part| match nodes.has(names, part) {
        true => qmp.execute("blockdev-del", json!({ "node-name": names.part(part) })).map(drop),
        false => Ok(()),
    };
    delete(qmp, Part::Snapshot)?;
    if nodes.has(names, Part::Filter) {
        let options = json!({ "options": [over(names.role(), json!(node))] });
        qmp.execute("blockdev-reopen", options)?;
        delete(qmp, Part::Filter)?;
    }
    delete(qmp, Part::Fleecing)?;
    let key = names.part(Part::FleecingKey);
    let objects = qmp.execute("qom-list", json!({ "path": "/objects" }))?;
    if objects.as_array().into_iter().flatten().any(|object| object["name"] == json!(key)) {
        qmp.execute("object-del", json!({ "id": key }))?;
    }
    qmp.remove_descriptors(fleecing_set(names.role()))?;
    transaction(qmp, ended(&node, &nodes.bitmaps(names), is_taken))?;
    if exports(qmp)?.is_empty() && directory.join(NBD_SOCKET).exists() {
        // It may have been stopped already.
        let _ = qmp.execute("nbd-server-stop", json!({}));
        socket::remove(directory, NBD_SOCKET)?;
    }
    Ok(())
}

/// What becomes of the bitmaps. Pure.
fn ended(node: &str, bitmaps: &[Bitmap], is_taken: bool) -> Vec<Value> {
    let Some((open, id)) =
        bitmaps.iter().find_map(|bitmap| Some((&bitmap.name, bitmap.name.strip_prefix(OPEN)?)))
    else {
        return Vec::new();
    };
    let merge = |into: &str| {
        json!({
            "type": "block-dirty-bitmap-merge",
            "data": { "node": node, "target": into, "bitmaps": [open] },
        })
    };
    let before = bitmaps.iter().filter(|bitmap| bitmap.name != *open);
    let mut actions = Vec::new();
    if is_taken {
        // One of that name can only be of an earlier try, and knows less.
        actions.extend(before.map(|bitmap| change("remove", node, &bitmap.name)));
        let since = format!("{SINCE}{id}");
        actions.push(change("add", node, &since));
        actions.push(merge(&since));
    } else {
        for bitmap in before {
            if !bitmap.is_recording {
                actions.push(change("enable", node, &bitmap.name));
            }
            actions.push(merge(&bitmap.name));
        }
    }
    actions.push(change("remove", node, open));
    actions
}

fn change(how: &str, node: &str, bitmap: &str) -> Value {
    let data = json!({ "node": node, "name": bitmap });
    json!({ "type": format!("block-dirty-bitmap-{how}"), "data": data })
}

fn transaction(qmp: &mut Qmp, actions: Vec<Value>) -> io::Result<()> {
    match actions.is_empty() {
        true => Ok(()),
        false => qmp.execute("transaction", json!({ "actions": actions })).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp;

    fn bitmap(name: &str, is_recording: bool) -> Bitmap {
        Bitmap { name: name.to_owned(), is_recording }
    }

    /// In short.
    fn words(actions: &[Value]) -> Vec<String> {
        let word = |action: &Value| {
            let what = action["type"].as_str().unwrap().strip_prefix("block-dirty-bitmap-");
            let of = action["data"].get("name").or(action["data"].get("target"));
            format!("{} {}", what.unwrap(), of.unwrap().as_str().unwrap())
        };
        actions.iter().map(word).collect()
    }

    #[test]
    fn what_has_changed_is_known_since_the_last_snapshot_that_was_taken() {
        let two = [bitmap("open-b", true), bitmap("since-a", false)];
        assert_eq!(
            words(&ended("n", &two, true)),
            ["remove since-a", "add since-b", "merge since-b", "remove open-b"]
        );
        assert_eq!(
            words(&ended("n", &two, false)),
            ["enable since-a", "merge since-a", "remove open-b"]
        );
        let begun = [bitmap("open-b", true), bitmap("since-a", true)];
        assert_eq!(words(&ended("n", &begun, false)), ["merge since-a", "remove open-b"]);
        let first = [bitmap("open-b", true)];
        assert_eq!(words(&ended("n", &first, false)), ["remove open-b"]);
        assert_eq!(
            words(&ended("n", &first, true)),
            ["add since-b", "merge since-b", "remove open-b"]
        );
        assert!(ended("n", &[bitmap("since-a", true)], true).is_empty(), "none is open");
    }

    #[test]
    fn the_instant_is_one_command_and_nothing_has_to_be_looked_up_for_it() {
        let (directory, played) = qmp::play(&[qmp::OK]);
        let mut line = Qmp::connect(&qmp::ours(), directory.path(), "qmp.sock").unwrap();
        begin(&mut line, directory.path(), 1).unwrap();
        drop(line);
        let heard = played.join().unwrap();
        let commands: Vec<Value> =
            heard.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<_> = commands.iter().map(|command| command["execute"].clone()).collect();
        // The first is the connection's, which is there before the guest is held still.
        assert_eq!(names, ["qmp_capabilities", "blockdev-reopen"]);
        let options = &commands[1]["arguments"]["options"][0];
        assert_eq!(
            (&options["node-name"], &options["file"]),
            (&json!("volume1"), &json!("filter-volume1"))
        );
    }

    #[test]
    fn what_is_kept_for_a_snapshot_is_encrypted_where_the_volume_is_and_never_flushed() {
        let image = |passphrase: Option<&str>| {
            let fleecing = tempfile::tempfile().unwrap().into();
            let passphrase = passphrase.map(|text| crate::Passphrase::new(text.to_owned()));
            let point = PointInTime { id: "a".to_owned(), previous: None, fleecing, passphrase };
            fleecing_image("fleecing-volume0", 13, &point, "fleecing-key-volume0")
        };
        let (plain, encrypted) = (image(None), image(Some("secret words")));
        assert!(plain.get("encrypt").is_none());
        assert_eq!(encrypted["encrypt"]["key-secret"], "fleecing-key-volume0");
        assert!(!encrypted.to_string().contains("secret words"));
        assert_eq!(encrypted["cache"]["no-flush"], json!(true));
    }
}
