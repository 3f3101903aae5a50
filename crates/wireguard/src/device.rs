//! The TUN device, over which packets of machines come and go. The kernel leaves TCP in packets of
//! up to 64 KiB there, which are cut here, and takes it so, put together here.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
};

use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use crate::{
    WireGuardError,
    tunnel::{Buffer, Pool},
};

/// Packets that one read may become. What would be more is cut by the kernel, see
/// [`Device::MOST_SEGMENTS`].
const SEGMENTS: usize = 128;
/// Packets that are put together at most.
const FRAMES: usize = 128;
/// Largest packet that the kernel hands over, bytes.
const LARGEST: usize = 65_535;

/// A TUN device that does not block. It is gone when it is dropped.
pub struct Device(SyncDevice);

/// Makes a TUN device of this name, at most 15 bytes long, in the calling thread's network
/// namespace. It has no addresses, and is down.
///
/// # Errors
/// When there is one already, or the host refuses.
pub fn create_device(name: &str) -> Result<Device, WireGuardError> {
    let made = DeviceBuilder::new().name(name).offload(true).enable(false).build_sync();
    let made = made.and_then(|device| device.set_nonblocking(true).map(|()| Device(device)));
    made.map_err(WireGuardError::io(format!("create the TUN device {name}")))
}

impl Device {
    /// What the kernel is to be told of the device (`gso_max_segs`): of how many packets one may
    /// consist that it hands over.
    pub const MOST_SEGMENTS: u32 = SEGMENTS as u32;
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.0.as_fd()).finish()
    }
}

/// What packets are read with.
pub(crate) struct Reader {
    pool: Pool,
    whole: Vec<u8>,
    segments: Vec<Segment>,
    sizes: Vec<usize>,
}

/// One packet of what was read.
struct Segment(Buffer);

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Segment {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Reader {
    pub(crate) fn new() -> Self {
        let pool = Pool::new(SEGMENTS);
        let segments = (0..SEGMENTS).map(|_| Segment(pool.get())).collect();
        let (whole, sizes) = (vec![0; VIRTIO_NET_HDR_LEN + LARGEST], vec![0; SEGMENTS]);
        Self { pool, whole, segments, sizes }
    }

    /// Reads what the kernel has, as packets of the size that the sender meant. None when there is
    /// nothing.
    pub(crate) fn read(
        &mut self,
        device: &Device,
    ) -> io::Result<Option<impl Iterator<Item = Buffer>>> {
        let Self { pool, whole, segments, sizes } = self;
        let count = match device.0.recv_multiple(whole, segments, sizes, 0) {
            Ok(count) => count,
            Err(error) => match error.raw_os_error() {
                // The device is down.
                Some(libc::EAGAIN | libc::EIO) => return Ok(None),
                Some(_) => return Err(error),
                // Not from the kernel: what was read is no packet that can be cut.
                None => 0,
            },
        };
        Ok(Some(segments.iter_mut().zip(sizes).take(count).map(|(segment, size)| {
            let mut packet = std::mem::replace(&mut segment.0, pool.get());
            packet.truncate(*size);
            packet
        })))
    }
}

/// What packets are written with.
pub(crate) struct Writer {
    table: GROTable,
    frames: Vec<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { table: GROTable::new(), frames: Vec::new() }
    }

    /// Writes packets, those of a connection put together. What the kernel does not take is lost.
    pub(crate) fn write(&mut self, device: &Device, packets: &mut Vec<Buffer>) {
        for some in packets.chunks(FRAMES) {
            if self.frames.len() < some.len() {
                self.frames.resize_with(some.len(), Vec::new);
            }
            for (frame, packet) in self.frames.iter_mut().zip(some) {
                frame.clear();
                frame.resize(VIRTIO_NET_HDR_LEN, 0);
                frame.extend_from_slice(packet);
            }
            let frames = self.frames.get_mut(..some.len()).unwrap_or_default();
            let _ = device.0.send_multiple(&mut self.table, frames, VIRTIO_NET_HDR_LEN);
        }
        packets.clear();
    }
}
