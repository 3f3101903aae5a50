//! `/v1/apps/{app}/volumes` and below.

pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod one;
pub(crate) mod organization;
pub(crate) mod snapshots;
mod source;

use caddis_api::Volume;
use sha2::{Digest as _, Sha256};

/// Without the figures of its use.
fn summary(volume: Volume) -> Volume {
    Volume { block_size: None, blocks: None, blocks_free: None, blocks_avail: None, ..volume }
}

/// So many letters and digits, at most 32, that stand for a request whenever it comes.
fn letters_of(request: &str, count: usize) -> String {
    const CHARACTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let character = |byte: &u8| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()]);
    Sha256::digest(request.as_bytes()).iter().take(count).map(character).collect()
}
