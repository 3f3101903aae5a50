//! The server's side of what comes before the first request.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
};

use super::wire::{self, Fields, Message, length, option, reply, take, violation};

/// Data of an option: a name and a few contexts. The protocol has names of at most 4096 bytes.
const LARGEST_OPTION: u32 = 16 << 10;
/// QEMU needs five.
const MOST_OPTIONS: usize = 64;

/// Of the one context that there is.
pub(super) const ALLOCATION_ID: u32 = 1;

const FLAGS: u16 = wire::HAS_FLAGS | wire::READ_ONLY | wire::CAN_MULTI_CONN;

/// What a client has agreed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// Negotiates until requests may come; `None` when the client wants none.
pub(super) async fn negotiate(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    size: u64,
) -> io::Result<Option<Agreed>> {
    let flags = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
    let greeting = Message::default().u64(wire::GREETING).u64(wire::OPTION).u16(flags);
    writer.write_all(&greeting.0).await?;
    let theirs = u32::from_be_bytes(take(reader).await?);
    if theirs & !u32::from(flags) != 0 {
        return Err(violation("the client wants what was not offered"));
    }
    let mut agreed = Agreed::default();
    for _ in 0..MOST_OPTIONS {
        let header = take::<16>(reader).await?;
        let mut fields = Fields(&header);
        let magic = fields.u64();
        let (Some(option), Some(count)) = (fields.u32(), fields.u32()) else { break };
        if magic != Some(wire::OPTION) {
            return Err(violation("an option is none"));
        }
        if count > LARGEST_OPTION {
            writer.write_all(&answer(option, reply::TOO_BIG, &[])).await?;
            return Err(violation("an option is too long"));
        }
        let mut data = vec![0; usize::try_from(count).unwrap_or_default()];
        reader.read_exact(&mut data).await?;
        match option {
            option::EXPORT_NAME => {
                let mut export = Message::default().u64(size).u16(FLAGS);
                if theirs & u32::from(wire::NO_ZEROES) == 0 {
                    export = export.bytes(&[0; 124]);
                }
                writer.write_all(&export.0).await?;
                return Ok(Some(agreed));
            }
            option::ABORT => {
                writer.write_all(&answer(option, reply::ACK, &[])).await?;
                return Ok(None);
            }
            _ => {}
        }
        let answers = answer_option(option, &data, size, &mut agreed);
        writer.write_all(&answers).await?;
        let is_last = |answers: &[u8]| answers.ends_with(&answer(option, reply::ACK, &[]));
        if option == option::GO && is_last(&answers) {
            return Ok(Some(agreed));
        }
    }
    Err(violation("there are too many options"))
}

/// All replies to an option after which the negotiation goes on.
fn answer_option(option: u32, data: &[u8], size: u64, agreed: &mut Agreed) -> Vec<u8> {
    let acknowledged = |answers: &[&[u8]]| {
        let mut all = answers.concat();
        all.extend(answer(option, reply::ACK, &[]));
        all
    };
    let refused = |kind| answer(option, kind, &[]);
    match option {
        // One export, under the name of the default.
        option::LIST if data.is_empty() => {
            acknowledged(&[&answer(option, reply::SERVER, &0_u32.to_be_bytes())])
        }
        option::STRUCTURED_REPLY if data.is_empty() => {
            agreed.structured = true;
            acknowledged(&[])
        }
        option::INFO | option::GO => match wants_block_size(data) {
            Some(wants) => {
                let info = |data: &Message| answer(option, reply::INFO, &data.0);
                let export = Message::default().u16(wire::INFO_EXPORT).u64(size).u16(FLAGS);
                let sizes = Message::default().u16(wire::INFO_BLOCK_SIZE);
                // The least, the best and the most.
                let sizes = sizes.u32(1).u32(64 << 10).u32(wire::LARGEST);
                let sizes = if wants { info(&sizes) } else { Vec::new() };
                acknowledged(&[&info(&export), &sizes])
            }
            None => refused(reply::INVALID),
        },
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            let is_set = option == option::SET_META_CONTEXT;
            let Some(wants) = wants_allocation(data, !is_set).filter(|_| agreed.structured) else {
                return refused(reply::INVALID);
            };
            if is_set {
                agreed.allocation = wants;
            }
            let id = if is_set { ALLOCATION_ID } else { 0 };
            let context = Message::default().u32(id).bytes(wire::ALLOCATION.as_bytes());
            let context = answer(option, reply::META_CONTEXT, &context.0);
            acknowledged(&[if wants { &context } else { &[] }])
        }
        option::LIST | option::STRUCTURED_REPLY => refused(reply::INVALID),
        _ => refused(reply::UNSUPPORTED),
    }
}

/// Whether the sizes of blocks are asked for; `None` for what is malformed.
fn wants_block_size(data: &[u8]) -> Option<bool> {
    let mut fields = Fields(data);
    fields.text()?;
    let count = fields.u16()?;
    let kinds = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
    fields.0.is_empty().then(|| kinds.contains(&wire::INFO_BLOCK_SIZE))
}

/// Whether our context is among those asked for; `None` for what is malformed. In a list, no
/// context and a namespace without a name stand for all.
fn wants_allocation(data: &[u8], is_list: bool) -> Option<bool> {
    let mut fields = Fields(data);
    fields.text()?;
    let count = fields.u32()?;
    let mut wants = is_list && count == 0;
    for _ in 0..count {
        let context = fields.text()?;
        wants |= context == wire::ALLOCATION.as_bytes() || is_list && context == b"base:";
    }
    fields.0.is_empty().then_some(wants)
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let header = Message::default().u64(wire::OPTION_REPLY).u32(option).u32(kind);
    header.u32(length(data)).bytes(data).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_is_told_from_what_is_not_wanted() {
        let name = || Message::default().text(b"any");
        assert_eq!(wants_block_size(&name().u16(0).0), Some(false));
        assert_eq!(wants_block_size(&name().u16(2).u16(1).u16(3).0), Some(true));
        assert_eq!(wants_block_size(&name().u16(2).u16(3).0), None, "one is missing");
        assert_eq!(wants_block_size(&name().u16(0).u16(3).0), None, "one is too many");
        assert_eq!(wants_block_size(&u32::MAX.to_be_bytes()), None);

        let context = |name: &[u8]| Message::default().u32(0).u32(1).text(name).0;
        assert_eq!(wants_allocation(&context(b"base:allocation"), false), Some(true));
        assert_eq!(wants_allocation(&context(b"base:"), false), Some(false));
        assert_eq!(wants_allocation(&context(b"base:"), true), Some(true));
        assert_eq!(wants_allocation(&Message::default().u32(0).u32(0).0, true), Some(true));
        assert_eq!(wants_allocation(&Message::default().u32(0).u32(0).0, false), Some(false));
        assert_eq!(wants_allocation(&Message::default().u32(0).u32(u32::MAX).0, false), None);
    }
}
