//! What the host asks for.

use std::time::Instant;

use caddis_guest_protocol::{
    GuestMessage, GuestState, HOLDS_SINCE, HostMessage, MachineSpec, OLDEST_SUPPORTED_VERSION,
    PROTOCOL_VERSION, frame::Frame, message::ExecRequest,
};

use super::{Guest, KERNEL_LOG, LOG_TIMEOUT, watch, watch_as};
use crate::{
    api::{Api, Ask},
    configure::{self, Prepared},
    execs::Exec,
    memory,
    oom::Victims,
    processes, warm_up,
};

/// Processes listed at most, so that the list fits a frame.
const MOST_PROCESSES: usize = 1000;
/// Highest signal number, that of the last real-time signal.
const LAST_SIGNAL: i32 = 64;

impl Guest {
    /// Acts on a message. True when the VM is to end.
    pub(super) fn receive(&mut self, frame: Frame<HostMessage>) -> bool {
        if let HostMessage::Hello { protocol, acknowledged_logs, .. } = frame.message {
            self.hello(frame.epoch, protocol, acknowledged_logs);
            return false;
        }
        if self.port.epoch() != Some(frame.epoch) {
            return false;
        }
        match frame.message {
            HostMessage::Configure(spec) => self.configure(*spec),
            HostMessage::WarmUp { id, spec } => {
                let outcome = match self.status {
                    GuestState::Waiting => warm_up::run(&spec, self.launcher.as_mut()),
                    _ => Err("the VM is no longer in warm-up".to_owned()),
                };
                self.answer(id, outcome);
            }
            HostMessage::Freeze { id } => {
                self.thawing = None;
                let outcome = self.freezer.freeze();
                if outcome.is_ok() {
                    // Now, since it is dear later.
                    self.tell_resume();
                }
                match outcome {
                    // File systems must be whole without this memory: it may be lost.
                    Ok(()) => self.write_out(id),
                    Err(_) => self.answer(id, outcome),
                }
            }
            HostMessage::Thaw { id, time_ns, entropy, resumed } => {
                self.thaw(id, time_ns, &entropy, resumed)
            }
            HostMessage::Signal { signal, is_default } => self.signal(signal, is_default),
            HostMessage::Exec(request) => self.exec(&request),
            HostMessage::Input { id } => self.with_exec(id, |exec| exec.push_input(frame.payload)),
            HostMessage::CloseInput { id } => self.with_exec(id, Exec::end_input),
            HostMessage::CancelExec { id } => self.hang_up(|exec| exec.id == id),
            HostMessage::SignalExec { id, signal: number @ 1..=LAST_SIGNAL } => {
                self.with_exec(id, |exec| exec.signal(number));
            }
            HostMessage::SignalExec { signal, .. } => {
                self.refuse(format!("there is no signal {signal}"))
            }
            HostMessage::Resize { id, columns, rows } => {
                self.with_exec(id, |exec| exec.resize(columns, rows))
            }
            HostMessage::Credit { id, bytes } => self.with_exec(id, |exec| exec.add_credit(bytes)),
            HostMessage::ListProcesses { id } => {
                let mut processes = processes::list(self.programs.namespaces());
                processes.truncate(MOST_PROCESSES);
                self.port.send(&GuestMessage::Processes { id, processes }, b"");
            }
            HostMessage::Memory { id, limit_mib, reclaim_mib } => {
                match memory::manage(limit_mib, reclaim_mib) {
                    Ok(memory) => self.port.send(&GuestMessage::Memory { id, memory }, b""),
                    Err(failure) => self.answer(id, Err(failure)),
                }
            }
            HostMessage::Held { id, status, until, error } => {
                if let Some(api) = &mut self.api {
                    api.answer(id, error.map_or(Ok(until), |error| Err((status, error))));
                }
            }
            HostMessage::AcknowledgeLogs { sequence } => self.logs.acknowledge(sequence),
            HostMessage::AcknowledgeExit => {
                if self.ended_at.is_some() {
                    self.power_off_at.get_or_insert(Instant::now() + LOG_TIMEOUT);
                }
            }
            HostMessage::Time { time_ns, answers: Some(id) } => {
                match self.sync.answered(id, time_ns) {
                    Ok(true) => self.ask_time(),
                    outcome => {
                        self.warn(outcome.map(|_| ()));
                        // It may have been the answer to an earlier question.
                        if !self.sync.is_asking() {
                            self.finish_thaw();
                        }
                    }
                }
            }
            HostMessage::Time { .. } => {
                self.sync.begin();
                self.ask_time();
            }
            HostMessage::GrowVolume { id, volume, size } => self.grow_volume(id, volume, size),
            HostMessage::VolumeUsage { id } => self.tell_volume_usage(id),
            HostMessage::FreezeVolumes { id, deadline_ms } => self.freeze_volumes(id, deadline_ms),
            HostMessage::ThawVolumes { id } => self.thaw_volumes(id),
            HostMessage::PowerOff => return self.power_off(),
            HostMessage::Hello { .. } => {}
        }
        false
    }

    pub(super) fn hello(&mut self, epoch: u32, protocol: u32, acknowledged_logs: u64) {
        if self.port.epoch() != Some(epoch) {
            self.port.begin(epoch);
            self.logs.restart(acknowledged_logs);
            self.told_end = false;
            if let GuestState::Exited(report) = &mut self.status {
                // What was sent may be lost: it is sent again, and only then all was said.
                report.logs_complete = false;
            }
            // Nobody follows them any more.
            self.hang_up(|_| true);
        }
        self.protocol = protocol.clamp(OLDEST_SUPPORTED_VERSION, PROTOCOL_VERSION);
        let welcome = GuestMessage::Welcome {
            protocol: self.protocol,
            init_version: env!("CARGO_PKG_VERSION").to_owned(),
            status: self.status.clone(),
            machine_id: self.spec.as_ref().map(|spec| spec.machine_id.clone()),
        };
        self.port.send(&welcome, b"");
        if self.status != GuestState::Waiting {
            self.sync.begin();
            self.ask_time();
        }
    }

    pub(super) fn answer(&mut self, id: u32, outcome: Result<(), String>) {
        self.port.send(&GuestMessage::Answer { id, failure: outcome.err(), still_us: None }, b"");
    }

    pub(super) fn refuse(&mut self, message: impl Into<String>) {
        self.port.send(&GuestMessage::Error { message: message.into() }, b"");
    }

    pub(super) fn configure(&mut self, spec: MachineSpec) {
        if self.status != GuestState::Waiting {
            if self.spec.as_ref().is_none_or(|known| known.machine_id != spec.machine_id) {
                self.refuse("this VM already belongs to another machine");
            }
            return;
        }
        self.timing.step("wait");
        self.status = GuestState::Preparing;
        if let Err(message) = self.start(&spec) {
            self.end(GuestState::Failed { message });
        }
        self.spec = Some(spec);
    }

    pub(super) fn start(&mut self, spec: &MachineSpec) -> Result<(), String> {
        let mut prepared = configure::prepare(spec, &mut self.timing)?;
        for warning in std::mem::take(&mut prepared.warnings) {
            self.warn(Err(warning));
        }
        if let Some(listener) = prepared.api.take() {
            let api = Api::new(listener);
            let watched = watch(&self.epoll, api.listener());
            self.warn(watched);
            self.api = Some(api);
        }
        match Victims::begin() {
            Ok(victims) => {
                let watched =
                    victims.file().map_or(Ok(()), |log| watch_as(&self.epoll, log, KERNEL_LOG));
                self.victims = victims;
                self.warn(watched);
            }
            Err(error) => self.warn(Err(error)),
        }
        if spec.mounts.is_empty() {
            return self.run_programs(spec, prepared);
        }
        self.mount_volumes(spec, prepared)
    }

    /// The last part of a start.
    pub(super) fn run_programs(
        &mut self,
        spec: &MachineSpec,
        prepared: Prepared,
    ) -> Result<(), String> {
        let started = self
            .programs
            .start(spec, &prepared, self.launcher.take(), |file| watch(&self.epoll, file));
        self.prepared = Some(prepared);
        started
    }

    /// Passes on what programs ask by their socket.
    pub(super) fn ask_for_holds(&mut self, now: Instant) {
        let Some(api) = &mut self.api else { return };
        loop {
            let asks = api.pump(now, |client| watch(&self.epoll, client));
            if asks.is_empty() {
                return;
            }
            for Ask { id, ttl_seconds } in asks {
                let refused = if self.protocol < HOLDS_SINCE {
                    "the server is of an earlier release, which knows no holds"
                } else if !self.port.has_room() {
                    "the server can't be reached now, try again"
                } else {
                    self.port.send(&GuestMessage::Hold { id, ttl_seconds }, b"");
                    continue;
                };
                // Written by the next turn.
                api.answer(id, Err((503, refused.to_owned())));
            }
        }
    }

    pub(super) fn signal(&mut self, number: i32, is_default: bool) {
        match number {
            // Its own programs have ended: what is told to end is what holds it.
            1..=LAST_SIGNAL if self.held_end.is_some() => self.hang_up(|exec| exec.holds_machine),
            1..=LAST_SIGNAL => {
                let told = self.programs.tell(number, is_default);
                self.warn(told);
            }
            _ => self.refuse(format!("there is no signal {number}")),
        }
    }

    pub(super) fn exec(&mut self, request: &ExecRequest) {
        let started = match (&self.prepared, &self.spec) {
            _ if self.volumes.are_going() => Err("the machine is being stopped".to_owned()),
            _ if request.holds_machine && self.ended_at.is_some() => {
                Err("the machine's program has ended".to_owned())
            }
            (Some(prepared), Some(spec)) => {
                Exec::start(request, prepared, &spec.working_dir, self.programs.namespaces())
            }
            _ => Err("the machine's program has not been started".to_owned()),
        };
        let watched = started.and_then(|exec| {
            let (outputs, input) = exec.files();
            outputs
                .into_iter()
                .chain(input)
                .try_for_each(|file| watch(&self.epoll, file))
                .map(|()| exec)
        });
        match watched {
            Ok(exec) => {
                self.held |= exec.holds_machine;
                self.execs.push(exec);
            }
            Err(message) => self
                .port
                .send(&GuestMessage::ExecFailed { id: request.id, message, code: None }, b""),
        }
    }

    pub(super) fn with_exec(&mut self, id: u32, act: impl FnOnce(&mut Exec)) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.id == id) {
            act(exec);
        }
    }
}
