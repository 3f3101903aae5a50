//! Pretended programs.

use tokio::sync::mpsc;

use super::FakeGuest;
use crate::{GuestState, LOG_BACKLOG_BYTES, MachineSpec, message::ProcessInfo};

const SIGSEGV: i32 = 11;
const SIGKILL: i32 = 9;
const PID: i32 = 100;

impl FakeGuest {
    pub(super) fn configure(&self, spec: MachineSpec) {
        let (signals, receiver) = mpsc::unbounded_channel();
        {
            let mut state = self.state();
            if state.status != GuestState::Waiting {
                return;
            }
            state.spec = Some(spec.clone());
            state.status = GuestState::Preparing;
            if self.behaviour.hang_after_configure {
                return;
            }
            if spec.argv.first().is_some_and(|program| program == "fail-to-prepare") {
                state.status = GuestState::Failed { message: "told to fail".to_owned() };
            } else {
                state.status = GuestState::Running { pid: PID };
                state.signals = Some(signals);
                let guest = self.clone();
                tokio::spawn(async move { guest.run_program(spec, receiver).await });
            }
        }
        self.announce();
    }

    pub(super) fn signal(&self, signal: i32) {
        if let Some(signals) = &self.state().signals {
            // A program that has just ended hears nothing.
            let _ = signals.send(signal);
        }
    }

    pub(super) fn processes(&self) -> Vec<ProcessInfo> {
        let command = self.spec().map(|spec| spec.argv.join(" ")).unwrap_or_default();
        let directory = "/".to_owned();
        vec![ProcessInfo {
            pid: PID,
            stime: 1,
            rtime: 2,
            command,
            directory,
            cpu: 3,
            rss: 4096,
            listen_sockets: vec![],
        }]
    }

    pub(super) async fn run_program(
        &self,
        spec: MachineSpec,
        mut signals: mpsc::UnboundedReceiver<i32>,
    ) {
        let off = self.powered_off.subscribe();
        let program = spec.argv.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word));
        let argument = spec.argv.get(1).map_or("", String::as_str);
        let work = async {
            match program {
                "exit" => self.exit(argument.parse().unwrap_or(0), None, false),
                "crash" => self.exit(128 + SIGSEGV, Some(SIGSEGV), false),
                "oom" => self.exit(128 + SIGKILL, Some(SIGKILL), true),
                "echo" => {
                    self.log(spec.argv[1..].join(" ") + "\n");
                    self.exit(0, None, false);
                }
                "oom-child" => {
                    self.state().victims.push(PID + 1);
                    self.announce();
                    self.until_signal(&mut signals, |_| true).await;
                }
                "flood" => self.flood(&mut signals).await,
                "ignore-signals" => {
                    self.until_signal(&mut signals, |signal| signal == SIGKILL).await
                }
                "sleep" => {
                    let time = super::seconds(argument);
                    tokio::select! {
                        () = self.until_signal(&mut signals, |_| true) => {}
                        () = tokio::time::sleep(time) => self.exit(0, None, false),
                    }
                }
                _ => self.until_signal(&mut signals, |_| true).await,
            }
        };
        tokio::select! {
            () = work => {}
            () = super::ended(off) => {}
        }
    }

    async fn until_signal(
        &self,
        signals: &mut mpsc::UnboundedReceiver<i32>,
        heeds: impl Fn(i32) -> bool,
    ) {
        while let Some(signal) = signals.recv().await {
            if heeds(signal) {
                self.exit(128 + signal, Some(signal), false);
                return;
            }
        }
    }

    async fn flood(&self, signals: &mut mpsc::UnboundedReceiver<i32>) {
        let line = "x".repeat(200) + "\n";
        let mut news = self.news.subscribe();
        loop {
            let held: usize = self.state().logs.iter().map(|(_, text)| text.len()).sum();
            if held < LOG_BACKLOG_BYTES / 2 {
                self.log(line.clone());
                tokio::task::yield_now().await;
            }
            tokio::select! {
                Some(signal) = signals.recv() => {
                    self.exit(128 + signal, Some(signal), false);
                    return;
                }
                Ok(()) = news.changed() => {}
            }
        }
    }
}
