//! What a guest may read and write of its volumes. It is the devices that are limited: what the
//! host reads of a volume, for a snapshot or while it is being restored, is not the guest's.

use std::io;

use serde_json::{Value, json};

use super::qmp::Qmp;
use crate::{IoLimits, VmmError, VolumeDisk};

/// The devices of one group have their limits together.
const GROUP: &str = "volumes";

/// Limits what the guest may read and write of all its volumes together.
pub(super) fn limit(
    qmp: &mut Qmp,
    volumes: &[VolumeDisk],
    limits: Option<IoLimits>,
) -> Result<(), VmmError> {
    let (Some(limits), false) = (limits, volumes.is_empty()) else { return Ok(()) };
    let mut set = || {
        let devices = qmp.execute("query-block", json!({}))?;
        for volume in volumes {
            let name = volume.role().name();
            let device = device(&devices, &name)
                .ok_or_else(|| io::Error::other(format!("{name} has no device")))?;
            qmp.execute("block_set_io_throttle", arguments(device, limits))?;
        }
        Ok(())
    };
    set().map_err(VmmError::io("limit the volumes"))
}

/// The device over the node of this name, as QEMU names it.
fn device<'a>(devices: &'a Value, node: &str) -> Option<&'a str> {
    let mut devices = devices.as_array()?.iter();
    let is_over = |device: &&Value| {
        device.pointer("/inserted/node-name").and_then(Value::as_str) == Some(node)
    };
    devices.find(is_over)?["qdev"].as_str()
}

/// For `block_set_io_throttle`: reads and writes count together.
fn arguments(device: &str, IoLimits { iops, bytes_per_second }: IoLimits) -> Value {
    json!({
        "id": device, "group": GROUP,
        "iops": iops, "iops_rd": 0, "iops_wr": 0,
        "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_over_a_volume_s_node_gets_its_limits_in_the_group_of_all() {
        let devices = json!([
            { "qdev": "/machine/a", "inserted": { "node-name": "root" } },
            { "qdev": "/machine/empty" },
            { "qdev": "/machine/b", "inserted": { "node-name": "volume1" } },
        ]);
        assert_eq!(device(&devices, "volume1"), Some("/machine/b"));
        assert_eq!(device(&devices, "volume0"), None);
        let limits = IoLimits { iops: 4000, bytes_per_second: 16 << 20 };
        let expected = json!({
            "id": "/machine/b", "group": "volumes", "iops": 4000, "iops_rd": 0, "iops_wr": 0,
            "bps": 16 << 20, "bps_rd": 0, "bps_wr": 0,
        });
        assert_eq!(arguments("/machine/b", limits), expected);
    }
}
