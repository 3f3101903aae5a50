//! The virtio-serial port to the host: frames in, frames out, never blocking.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use crate::uevents::Uevents;
use bytes::{Buf as _, Bytes};
use caddis_guest_protocol::{
    GuestMessage, HostMessage, PORT_NAME,
    frame::{self, Decoder, Frame, MAX_HOST_CONTROL},
};

/// Bytes beyond which bulk waits before more is queued.
const ENOUGH: usize = 128 * 1024;

/// The port.
pub struct Port {
    file: File,
    decoder: Decoder,
    epoch: Option<u32>,
    outgoing: VecDeque<Bytes>,
    queued: usize,
}

impl Port {
    /// Finds the port by its name, which the kernel learns from the host some time after it has
    /// found the device.
    pub fn open() -> Result<Self, String> {
        let changes = Uevents::open()?;
        loop {
            match Self::find() {
                Ok(port) => return Ok(port),
                Err(reason) if !changes.wait() => return Err(reason),
                Err(_) => {}
            }
        }
    }

    fn find() -> Result<Self, String> {
        let ports = fs::read_dir("/sys/class/virtio-ports")
            .map_err(|e| format!("no virtio-serial port: {e}"))?;
        for entry in ports.flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() != PORT_NAME {
                continue;
            }
            let path = std::path::Path::new("/dev").join(entry.file_name());
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&path);
            let file = file.map_err(|e| format!("can't open {}: {e}", path.display()))?;
            let decoder = Decoder::new(MAX_HOST_CONTROL);
            return Ok(Self { file, decoder, epoch: None, outgoing: VecDeque::new(), queued: 0 });
        }
        Err(format!("no virtio-serial port is called {PORT_NAME}"))
    }

    /// All messages that have arrived.
    pub fn receive(&mut self) -> Vec<Frame<HostMessage>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match self.file.read(&mut buffer) {
                // Nobody is connected.
                Ok(0) => return frames,
                Ok(count) => {
                    self.decoder.push(&buffer[..count]);
                    frames.extend(std::iter::from_fn(|| self.decoder.next_frame()));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing more now; anything else is told by the next event.
                Err(_) => return frames,
            }
        }
    }

    /// The connection that messages belong to.
    pub fn epoch(&self) -> Option<u32> {
        self.epoch
    }

    /// A host has connected: what was meant for the one before is dropped.
    pub fn begin(&mut self, epoch: u32) {
        self.epoch = Some(epoch);
        self.outgoing.clear();
        self.queued = 0;
    }

    /// Queues a message. Without a host nobody is told: a new one asks.
    pub fn send(&mut self, message: &GuestMessage, payload: &[u8]) {
        let Some(epoch) = self.epoch else { return };
        match frame::encode(epoch, message, payload) {
            Ok(frame) => {
                self.queued += frame.len();
                self.outgoing.push_back(frame);
            }
            Err(error) => crate::kernel::say(&format!("message dropped: {error}")),
        }
    }

    /// Whether there is room for bulk.
    pub fn has_room(&self) -> bool {
        self.epoch.is_some() && self.queued < ENOUGH
    }

    /// Writes as much as the host takes now. True when some was written.
    pub fn flush(&mut self) -> bool {
        let mut progress = false;
        while let Some(front) = self.outgoing.front_mut() {
            match self.file.write(front) {
                Ok(0) => break,
                Ok(count) => {
                    progress = true;
                    self.queued = self.queued.saturating_sub(count);
                    front.advance(count.min(front.len()));
                    if front.is_empty() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The host takes no more, or is not there: an event tells when it is.
                Err(_) => break,
            }
        }
        progress
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
