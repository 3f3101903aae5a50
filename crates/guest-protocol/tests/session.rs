//! A session of the host with a guest that speaks the real protocol.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState, MachineSpec,
    fake::{Behaviour, FakeGuest, STILL_US},
    host::{AgentStream, Connector, ExecCommand, GuestEvent, Session, SessionError},
    spec::{MountSpec, VolumeFilesystem},
};
use tokio::sync::mpsc;

struct Wire(FakeGuest);

#[async_trait]
impl Connector for Wire {
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let guest = self.0.clone();
        tokio::spawn(async move { guest.serve(theirs).await });
        Ok(Box::new(ours))
    }
}

fn open(behaviour: Behaviour) -> (FakeGuest, Session, mpsc::Receiver<GuestEvent>) {
    let guest = FakeGuest::new(behaviour);
    let (session, events) = Session::open(Arc::new(Wire(guest.clone())), 0);
    (guest, session, events)
}

fn spec(argv: &[&str]) -> MachineSpec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    MachineSpec {
        machine_id: "m".to_owned(),
        argv,
        env: vec![("A".into(), "b".into())],
        ..MachineSpec::default()
    }
}

async fn until<T>(
    events: &mut mpsc::Receiver<GuestEvent>,
    mut wanted: impl FnMut(&GuestEvent) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let event = events.recv().await.unwrap();
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), search).await.unwrap()
}

fn exit_code(event: &GuestEvent) -> Option<i32> {
    match event {
        GuestEvent::Finished(GuestState::Exited(report)) => Some(report.code),
        _ => None,
    }
}

#[tokio::test]
async fn a_program_is_configured_logs_ends_and_the_guest_powers_off_once_that_is_known() {
    let (guest, session, mut events) = open(Behaviour::default());
    session.configure(spec(&["echo", "hello"])).await.unwrap();
    let text = until(&mut events, |event| match event {
        GuestEvent::Log { sequence: 1, text, .. } => Some(text.clone()),
        _ => None,
    })
    .await;
    assert_eq!(text, "hello\n");
    assert_eq!(until(&mut events, exit_code).await, 0);
    session.acknowledge_exit();
    guest.powered_off().await;
}

#[tokio::test]
async fn a_signal_ends_the_program() {
    let (_guest, session, mut events) = open(Behaviour::default());
    session.configure(spec(&["sleep", "inf"])).await.unwrap();
    session.signal(15).await.unwrap();
    assert_eq!(until(&mut events, exit_code).await, 128 + 15);
}

#[tokio::test]
async fn execs_give_output_exit_codes_and_take_input() {
    let (_guest, session, _events) = open(Behaviour::default());
    session.configure(spec(&["sleep", "inf"])).await.unwrap();
    let run = |argv: &[&str], stdin: Vec<u8>| {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let session = session.clone();
        async move {
            session
                .exec(ExecCommand {
                    argv,
                    stdin: stdin.into(),
                    output_limit: 1 << 20,
                    ..Default::default()
                })
                .await
        }
    };
    assert_eq!(run(&["echo", "a", "b"], vec![]).await.unwrap().stdout, b"a b\n");
    assert_eq!(run(&["env"], vec![]).await.unwrap().stdout, b"A=b\n");
    assert_eq!(run(&["exit", "3"], vec![]).await.unwrap().code, 3);
    let missing = run(&["nothing"], vec![]).await.unwrap();
    assert_eq!(
        (missing.code, &*missing.stderr),
        (127, &b"nothing: no such program\n"[..]),
        "as a shell tells it"
    );
    let large = vec![b'x'; 700_000];
    assert_eq!(run(&["cat"], large.clone()).await.unwrap().stdout, large);
    let short = session.exec(ExecCommand {
        argv: vec!["cat".to_owned()],
        stdin: large.into(),
        output_limit: 10,
        ..Default::default()
    });
    let short = short.await.unwrap();
    assert!(short.truncated && short.stdout.len() == 10);
}

#[tokio::test]
async fn broken_connections_lose_and_double_nothing() {
    let behaviour = Behaviour {
        frames_per_connection: Some(3),
        garbage: b"old CDS1 bytes".to_vec(),
        ..Default::default()
    };
    let (guest, session, mut events) = open(behaviour);
    session.configure(spec(&["flood"])).await.unwrap();
    let mut expected = 1;
    while expected <= 40 {
        let sequence = until(&mut events, |event| match event {
            GuestEvent::Log { sequence, .. } => Some(*sequence),
            _ => None,
        })
        .await;
        assert_eq!(sequence, expected);
        session.acknowledge_logs(sequence);
        expected += 1;
    }
    // A signal that was under way when a connection broke is lost, as is said of it.
    let killer = {
        let session = session.clone();
        tokio::spawn(async move {
            while !matches!(session.signal(9).await, Err(SessionError::Closed)) {
                tokio::task::yield_now().await;
            }
        })
    };
    assert_eq!(
        until(&mut events, |event| match event {
            GuestEvent::Log { sequence, .. } => {
                session.acknowledge_logs(*sequence);
                None
            }
            GuestEvent::Welcome { status: GuestState::Exited(report), .. } => Some(report.code),
            other => exit_code(other),
        })
        .await,
        137
    );
    killer.abort();
    session.acknowledge_exit();
    guest.powered_off().await;
}

#[tokio::test]
async fn a_flood_stays_within_its_window_when_nobody_acknowledges() {
    let (_guest, session, mut events) = open(Behaviour::default());
    session.configure(spec(&["flood"])).await.unwrap();
    let mut bytes = 0;
    let mut first = None;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(1), events.recv()).await {
        if let GuestEvent::Log { text, sequence, .. } = event {
            first.get_or_insert(sequence);
            bytes += text.len();
        }
        assert!(bytes <= caddis_guest_protocol::LOG_WINDOW_BYTES);
    }
    // The window does not hold up anything else.
    assert_eq!(session.processes().await.unwrap().len(), 1);
    assert_eq!(first, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_is_no_connection() {
    let (_guest, session, _events) = open(Behaviour { silent: true, ..Default::default() });
    assert_eq!(session.signal(15).await, Err(SessionError::NotConnected));
    session.close();
    assert_eq!(session.signal(15).await, Err(SessionError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_more_is_told_and_is_heard_again() {
    let (guest, session, mut events) = open(Behaviour::default());
    session.configure(spec(&["sleep", "inf"])).await.unwrap();
    until(&mut events, |event| matches!(event, GuestEvent::Started { .. }).then_some(())).await;
    session.processes().await.unwrap();
    guest.set_mute(true);
    let begun = tokio::time::Instant::now();
    let silent = async {
        loop {
            match events.recv().await.unwrap() {
                GuestEvent::Silent => return,
                GuestEvent::Heard => panic!("it was never silent"),
                _ => {}
            }
        }
    };
    // A minute until it is asked, and 15 seconds for each of two questions.
    tokio::time::timeout(Duration::from_secs(95), silent).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(30));
    // Whoever waits for an answer does so until the connection is given up.
    let argv = vec!["sleep".to_owned(), "inf".to_owned()];
    let waiting = session.exec(ExecCommand { argv, ..ExecCommand::default() });
    let mut waiting = std::pin::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut waiting).await.is_err());
    session.renew();
    waiting.await.unwrap_err();
    guest.set_mute(false);
    until(&mut events, |event| matches!(event, GuestEvent::Heard).then_some(())).await;
    session.processes().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_is_never_silent() {
    let (_guest, session, mut events) =
        open(Behaviour { boot_delay: Duration::from_secs(5), ..Behaviour::default() });
    session.configure(spec(&["sleep", "inf"])).await.unwrap();
    let silent = async {
        while let Some(event) = events.recv().await {
            assert_ne!(event, GuestEvent::Silent);
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), silent).await.unwrap_err();
}

#[tokio::test]
async fn a_hold_that_a_program_asks_for_is_answered_with_its_end_or_a_refusal() {
    let (guest, session, mut events) = open(Behaviour::default());
    for (ttl, outcome, expected) in [
        (Some(300), Ok(Some("then".to_owned())), (200, Some("then".to_owned()))),
        (None, Ok(None), (200, None)),
        (Some(1), Err((412, "no".to_owned())), (412, Some("no".to_owned()))),
    ] {
        let answered = guest.ask_for_hold(ttl);
        let answer = async {
            let hold = |event: &GuestEvent| match event {
                GuestEvent::Hold { id, ttl_seconds } => Some((*id, *ttl_seconds)),
                _ => None,
            };
            let (id, asked) = until(&mut events, hold).await;
            assert_eq!(asked, ttl);
            session.answer_hold(id, outcome);
        };
        assert_eq!(tokio::join!(answered, answer).0, Some(expected));
    }
}

#[tokio::test]
async fn a_session_is_in_use_as_long_as_somebody_has_it() {
    let (_guest, session, _events) = open(Behaviour::default());
    assert!(!session.is_in_use());
    let (one, other) = (session.in_use(), session.in_use());
    drop(one);
    assert!(session.is_in_use());
    drop(other);
    assert!(!session.is_in_use());
}

#[tokio::test]
async fn volumes_are_asked_about_grown_and_held_still() {
    let deadline = Duration::from_secs(60);
    let (guest, session, mut events) = open(Behaviour::default());
    let mount = |volume, filesystem| MountSpec {
        volume,
        path: format!("/data{volume}"),
        filesystem,
        size: 1 << 30,
    };
    let mounts = vec![mount(0, VolumeFilesystem::Ext4), mount(1, VolumeFilesystem::Raw)];
    session.configure(MachineSpec { mounts, ..spec(&["sleep"]) }).await.unwrap();
    until(&mut events, |event| matches!(event, GuestEvent::Started { .. }).then_some(())).await;
    let usage = session.volume_usage(deadline).await.unwrap();
    let [volume] = usage[..] else { panic!("{usage:?}") };
    assert_eq!((volume.volume, volume.blocks * volume.block_size), (0, 1 << 30));
    session.grow_volume(0, 2 << 30, deadline).await.unwrap();
    session.grow_volume(1, 3 << 30, deadline).await.unwrap();
    let usage = session.volume_usage(deadline).await.unwrap();
    assert_eq!(usage[0].blocks * usage[0].block_size, 2 << 30);
    assert_eq!(guest.grown_volumes(), [(0, 2 << 30), (1, 3 << 30)].into());
    let refused = session.grow_volume(2, 1, deadline).await.unwrap_err();
    assert_eq!(refused, SessionError::Refused("the machine has no volume 2".to_owned()));

    session.freeze_volumes(Duration::from_millis(1500)).await.unwrap();
    assert_eq!(guest.frozen_volumes(), Some(1500));
    let still = session.thaw_volumes(deadline).await.unwrap();
    assert_eq!((still, guest.frozen_volumes()), (Some(Duration::from_micros(STILL_US)), None));
    session.freeze_volumes(deadline).await.unwrap();
    guest.end_freeze();
    assert!(session.thaw_volumes(deadline).await.is_err(), "they may have changed meanwhile");
}
