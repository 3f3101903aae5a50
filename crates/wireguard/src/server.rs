//! Moves packets between peers and machines, with two threads: one for each direction. They sleep
//! until something comes; the clock is looked at only while a peer has a session.

use std::{
    io,
    os::fd::AsFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::error;

use crate::{
    Device, Peers, Socket, WireGuardError,
    device::{Reader, Writer},
    peers::Effects,
    socket::Receiver,
};

/// How often peers with sessions are looked at, milliseconds. What is due is due in seconds.
const TICK: u16 = 250;
/// Packets after which those that are read are sent.
const BATCH: usize = 64;
/// Times that something is read before the clock and the end are looked at again.
const ROUNDS: usize = 16;

/// Moves what goes one way, until the end.
type Direction = fn(&Shared) -> io::Result<()>;

/// Moves packets until dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    peers: Arc<Peers>,
    socket: Socket,
    device: Device,
    /// The clock may matter now.
    woken: EventFd,
    end: EventFd,
}

impl Server {
    /// Begins.
    ///
    /// # Errors
    /// When the host refuses a thread or a descriptor.
    pub fn start(
        peers: Arc<Peers>,
        socket: Socket,
        device: Device,
    ) -> Result<Self, WireGuardError> {
        let failed = || WireGuardError::io("start WireGuard");
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let (woken, end) = (
            event().map_err(|error| failed()(error.into()))?,
            event().map_err(|error| failed()(error.into()))?,
        );
        let shared = Arc::new(Shared { peers, socket, device, woken, end });
        let mut server = Self { shared: shared.clone(), threads: Vec::new() };
        let directions: [(&str, Direction); 2] =
            [("wireguard-in", Shared::inward), ("wireguard-out", Shared::outward)];
        for (name, direction) in directions {
            let shared = shared.clone();
            let body = move || {
                if let Err(error) = direction(&shared) {
                    error!(%error, thread = name, "WireGuard has ended: peers reach nothing");
                }
            };
            let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
            server.threads.push(thread.map_err(failed())?);
        }
        Ok(server)
    }

    /// The peers.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.shared.peers
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Never full.
        let _ = self.shared.end.write(1);
        for thread in self.threads.drain(..) {
            // It has said what went wrong.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// From peers to machines, and what the clock brings.
    fn inward(&self) -> io::Result<()> {
        let (mut receiver, mut writer) = (Receiver::new(), Writer::new());
        let mut effects = Effects::default();
        let mut ticked = Instant::now();
        loop {
            let sources = [self.end.as_fd(), self.woken.as_fd(), self.socket.as_fd()];
            let timeout = if self.peers.are_active() { TICK.into() } else { PollTimeout::NONE };
            let ready = wait(sources, timeout)?;
            if ready[0] {
                return Ok(());
            }
            if ready[1] {
                let _ = self.woken.read();
            }
            for _ in 0..ROUNDS {
                let Some(datagrams) = receiver.receive(&self.socket) else { break };
                for (datagram, source) in datagrams {
                    self.peers.take_datagram(datagram, source, &mut effects);
                }
                self.carry_out(&mut effects, &mut writer);
            }
            if ticked.elapsed() >= Duration::from_millis(TICK.into()) {
                ticked = Instant::now();
                self.peers.tick(&mut effects);
                self.carry_out(&mut effects, &mut writer);
            }
        }
    }

    /// From machines to peers.
    fn outward(&self) -> io::Result<()> {
        let (mut reader, mut writer) = (Reader::new(), Writer::new());
        let mut effects = Effects::default();
        loop {
            let ready = wait([self.end.as_fd(), self.device.as_fd()], PollTimeout::NONE)?;
            if ready[0] {
                return Ok(());
            }
            let were_active = self.peers.are_active();
            for _ in 0..ROUNDS {
                let Some(packets) = reader.read(&self.device)? else { break };
                for packet in packets {
                    self.peers.take_packet(packet, &mut effects);
                }
                if effects.datagrams.len() >= BATCH {
                    self.carry_out(&mut effects, &mut writer);
                }
            }
            self.carry_out(&mut effects, &mut writer);
            if !were_active && self.peers.are_active() {
                // Full only when it is not read, and then it need not be told again.
                let _ = self.woken.write(1);
            }
        }
    }

    fn carry_out(&self, effects: &mut Effects, writer: &mut Writer) {
        self.socket.send(&mut effects.datagrams);
        writer.write(&self.device, &mut effects.packets);
    }
}

/// Waits until something can be read, or so long; which can.
fn wait<const N: usize>(
    sources: [std::os::fd::BorrowedFd<'_>; N],
    timeout: PollTimeout,
) -> io::Result<[bool; N]> {
    let mut events = sources.map(|source| PollFd::new(source, PollFlags::POLLIN));
    match poll(&mut events, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(events.map(|event| event.revents().is_some_and(|found| !found.is_empty())))
}
