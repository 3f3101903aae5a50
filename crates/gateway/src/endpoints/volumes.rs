//! `/v1/apps/{app}/volumes` and below.

pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod one;
pub(crate) mod organization;
pub(crate) mod snapshots;

use caddis_api::Volume;

/// Without the figures of its use.
fn summary(volume: Volume) -> Volume {
    Volume { block_size: None, blocks: None, blocks_free: None, blocks_avail: None, ..volume }
}
