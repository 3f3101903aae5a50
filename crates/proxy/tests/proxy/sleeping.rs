//! Machines that are put to sleep.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use caddis_proxy::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::support::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const IDLE: Duration = Duration::from_secs(5);

fn idle_route(name: &str, upstream: &Upstream) -> MachineRoute {
    let mut route = started(name, upstream.address);
    route.services[0].autostop = Autostop::Suspend;
    route.services[0].idle_timeout = Some(IDLE);
    route
}

/// A machine whose streams may be drained.
fn drainable(name: &str, upstream: &Upstream) -> MachineRoute {
    let mut route = started(name, upstream.address);
    route.services[0].autostop = Autostop::Stop;
    route.services[0].max_drain = Some(DAY);
    route
}

/// A machine that is kept awake, so that another one is in excess.
fn kept(name: &str, address: IpAddr) -> MachineRoute {
    let mut route = started(name, address);
    route.services[0].autostop = Autostop::Stop;
    route.hold = Some("exec".to_owned());
    route
}

/// Reads a request and switches to a WebSocket.
async fn switch(stream: &mut TcpStream) {
    read_request(stream).await;
    let text = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Lets all that can go on do so, without letting time pass by itself.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_idle_machine_is_suspended_after_its_timeout_and_not_before() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.apply(vec![idle_route("a1", &upstream)]);
    assert_eq!(world.get("/").await.status, 200);
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE - Duration::from_millis(500)).await;
    settle().await;
    assert!(world.machines.sleeps().is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    world.machines.until_asleep(1).await;
    assert_eq!(world.machines.sleeps(), [("a1".to_owned(), Sleep::Suspend)]);
    let counters = world.proxy.counters("app").unwrap();
    let decision = counters.machines[0].last_decision.clone().unwrap();
    assert_eq!(decision.action, "suspended");
    assert!(decision.reason.contains("5s"), "{}", decision.reason);
}

#[tokio::test]
async fn a_host_that_keeps_a_machine_awake_is_not_asked_again_at_once() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.machines.stay_awake.store(true, Ordering::SeqCst);
    world.apply(vec![idle_route("a1", &upstream)]);
    assert_eq!(world.get("/").await.status, 200);
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE + Duration::from_millis(10)).await;
    settle().await;
    assert_eq!(world.machines.sleeps().len(), 1);
    let counters = world.proxy.counters("app").unwrap();
    let decision = counters.machines[0].last_decision.clone().unwrap();
    assert_eq!(decision.action, "kept running");
    assert!(decision.reason.contains("a session is open"), "{}", decision.reason);
    tokio::time::advance(Duration::from_secs(31)).await;
    settle().await;
    assert_eq!(world.machines.sleeps().len(), 2);
}

#[tokio::test]
async fn what_is_open_to_a_machine_whose_vm_has_gone_ends() {
    let (upstream, _never) = gated().await;
    let world = World::new();
    let route = started("a1", upstream.address);
    world.apply(vec![route.clone()]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    let connections = || world.proxy.counters("app").unwrap().machines[0].connections;
    eventually("the connection", || connections() == 1).await;
    // It goes on while the machine's program is told to end.
    let stopping = MachineRoute { state: MachineState::Stopped, ..route.clone() };
    world.apply(vec![stopping.clone()]);
    assert_eq!(world.open_streams("a1"), 1);
    world.apply(vec![MachineRoute { is_off: true, ..stopping }]);
    assert_eq!(read_answer(&mut client).await.status, 502);
    eventually("the end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn what_is_open_to_a_machine_that_has_another_vm_ends() {
    let (upstream, _never) = gated().await;
    let world = World::new();
    let route = started("a1", upstream.address);
    world.apply(vec![route.clone()]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the stream", || world.open_streams("a1") == 1).await;
    // One that went on after a suspend was cancelled has the same.
    let awake = MachineRoute { started_at: SystemTime::now(), ..route };
    world.apply(vec![awake.clone()]);
    settle().await;
    assert_eq!(world.open_streams("a1"), 1);
    // A restart is not always seen as more than this.
    world.apply(vec![MachineRoute { booted_at: SystemTime::now(), ..awake }]);
    assert_eq!(read_answer(&mut client).await.status, 502);
    eventually("the end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn a_machine_whose_start_failed_while_it_went_to_sleep_takes_traffic_later() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let (open, gate) = watch::channel(false);
    world.machines.on_wake("a1", move || {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            Err(WakeError::Refused("no room".to_owned()))
        }
    });
    let (asked, mut was_asked) = watch::channel(false);
    *world.machines.before_sleep.lock() = Some(Box::new(move || {
        asked.send_replace(true);
    }));
    let (slept, sleeping) = watch::channel(false);
    *world.machines.until_slept.lock() = Some(sleeping);
    let mut route = idle_route("a1", &upstream);
    route.services[0].idle_timeout = Some(Duration::from_millis(10));
    world.apply(vec![route]);
    in_time("its going to sleep", was_asked.wait_for(|is_so| *is_so)).await.unwrap();
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the start", || world.machines.wakes().len() == 1).await;
    slept.send_replace(true);
    world.machines.until_asleep(1).await;
    open.send_replace(true);
    assert_eq!(read_answer(&mut client).await.status, 503);
    // Somebody else starts it.
    let mut route = started("a1", upstream.address);
    route.services[0].autostop = Autostop::Off;
    world.apply(vec![stopped("a1", upstream.address)]);
    world.apply(vec![route]);
    assert_eq!(world.get("/").await.status, 200);
}

#[tokio::test]
async fn an_idle_timeout_never_cuts_a_stream_and_counts_from_its_end() {
    let (upstream, open) = gated().await;
    let world = World::new();
    world.apply(vec![idle_route("a1", &upstream)]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the stream", || world.open_streams("a1") == 1).await;
    tokio::time::pause();
    for _ in 0..24 {
        tokio::time::advance(DAY / 24).await;
        settle().await;
    }
    tokio::time::resume();
    assert!(world.machines.sleeps().is_empty());
    open.send_replace(true);
    assert_eq!(read_answer(&mut client).await.body, "done");
    eventually("the end", || world.open_streams("a1") == 0).await;
    tokio::time::pause();
    settle().await;
    assert!(world.machines.sleeps().is_empty());
    tokio::time::advance(IDLE + Duration::from_millis(10)).await;
    tokio::time::resume();
    world.machines.until_asleep(1).await;
}

#[tokio::test]
async fn an_idle_timeout_counts_from_when_a_machine_is_ready_however_long_that_takes() {
    let world = World::new();
    let address = address();
    world.machines.on_wake("a1", || async { Ok(()) });
    let route = |state| {
        let mut route = machine("a1", address, state);
        route.services[0].autostop = Autostop::Suspend;
        route.services[0].idle_timeout = Some(IDLE);
        route
    };
    world.apply(vec![route(MachineState::Stopped)]);
    let mut client = TcpStream::connect(world.http).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the start", || world.machines.wakes().len() == 1).await;
    world.apply(vec![route(MachineState::Started)]);
    // Nobody waits for it any more.
    drop(client);
    eventually("its place is free", || world.waiting() == 0).await;
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE * 2).await;
    settle().await;
    tokio::time::resume();
    let upstream = Upstream::http_at(address, "late").await;
    eventually("it is ready", || upstream.connections() > 0).await;
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE - Duration::from_millis(500)).await;
    settle().await;
    assert!(world.machines.sleeps().is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    world.machines.until_asleep(1).await;
    assert_eq!(world.machines.wakes().len(), 1);
}

#[tokio::test]
async fn a_machine_that_slept_is_started_by_the_next_request() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    world.machines.on_wake("a1", || async { Ok(()) });
    let mut route = idle_route("a1", &upstream);
    route.services[0].idle_timeout = Some(Duration::from_millis(10));
    world.apply(vec![route]);
    for round in 1..4 {
        world.machines.until_asleep(round).await;
        assert_eq!(world.get("/").await.status, 200);
        assert_eq!(world.machines.wakes().len(), round);
    }
}

#[tokio::test]
async fn what_is_held_or_cordoned_or_needed_is_not_put_to_sleep() {
    let upstream = Upstream::http("one").await;
    let mut held = idle_route("a1", &upstream);
    held.hold = Some("lease of deploy".to_owned());
    let mut cordoned = idle_route("a1", &upstream);
    cordoned.cordoned = true;
    let mut needed = idle_route("a1", &upstream);
    needed.services[0].min_machines_running = 1;
    let mut off = idle_route("a1", &upstream);
    off.services[0].autostop = Autostop::Off;
    for route in [held, cordoned, needed, off] {
        let world = World::new();
        world.apply(vec![route]);
        settle().await;
        tokio::time::pause();
        tokio::time::advance(DAY).await;
        settle().await;
        assert!(world.machines.sleeps().is_empty());
        tokio::time::resume();
        // Once nothing speaks against it any more.
        world.apply(vec![idle_route("a1", &upstream)]);
        settle().await;
        tokio::time::pause();
        tokio::time::advance(DAY).await;
        tokio::time::resume();
        world.machines.until_asleep(1).await;
    }
}

#[tokio::test]
async fn all_idle_machines_sleep_but_for_the_least_number() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let routes = (0..20)
        .map(|number| {
            let mut route = idle_route(&format!("a{number:02}"), &upstream);
            route.services[0].min_machines_running = 3;
            route.services[0].idle_timeout = Some(Duration::from_millis(1));
            route
        })
        .collect();
    world.apply(routes);
    world.machines.until_asleep(17).await;
    settle().await;
    assert_eq!(world.machines.sleeps().len(), 17);
}

#[tokio::test]
async fn ten_thousand_idle_machines_sleep_within_a_second_of_their_time() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    for number in 0..10_000 {
        let route = idle_route(&format!("m{number}"), &upstream);
        let routes = AppRoutes { machines: vec![route], ..AppRoutes::default() };
        world.proxy.apply(format!("app{number}"), Some(routes));
    }
    tokio::time::pause();
    settle().await;
    tokio::time::advance(IDLE - Duration::from_secs(1)).await;
    settle().await;
    let early = world.machines.sleeps().len();
    // Applying them took some time itself.
    assert!(early < 10_000, "{early}");
    tokio::time::advance(Duration::from_secs(2)).await;
    // No time passes here: all that can be done is done at this moment.
    for _ in 0..100 {
        settle().await;
    }
    assert_eq!(world.machines.sleeps().len(), 10_000);
}

#[tokio::test]
async fn the_periodic_rule_stops_one_machine_in_each_pass() {
    let upstream = Upstream::http("one").await;
    let world = World::new();
    let routes = ["a1", "a2", "a3"].map(|name| {
        let mut route = started(name, upstream.address);
        route.services[0].autostop = Autostop::Stop;
        route
    });
    world.apply(routes.to_vec());
    settle().await;
    tokio::time::pause();
    let minute = Duration::from_secs(61);
    for pass in 1..=3 {
        tokio::time::advance(minute).await;
        settle().await;
        let counters = world.proxy.counters("app");
        assert_eq!(world.machines.sleeps().len(), pass, "{counters:#?}");
    }
    assert!(world.machines.sleeps().iter().all(|(_, how)| *how == Sleep::Stop));
}

#[tokio::test]
async fn unused_connections_are_closed_before_a_machine_is_suspended() {
    let (closed, was_closed) = watch::channel(false);
    let closed = Arc::new(closed);
    let upstream = Upstream::serve(move |mut stream, _| {
        let closed = closed.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                respond(&mut stream, "fine").await.unwrap();
            }
            closed.send_replace(true);
        }
    })
    .await;
    let world = World::with(|config| config.pool_idle = DAY);
    let mut route = idle_route("a1", &upstream);
    route.services[0].idle_timeout = Some(Duration::from_millis(10));
    world.apply(vec![route]);
    assert_eq!(world.get("/").await.status, 200);
    world.machines.until_asleep(1).await;
    let mut was_closed = was_closed.clone();
    in_time("the close", was_closed.wait_for(|is_so| *is_so)).await.unwrap();
}

/// A WebSocket through the proxy: the client's end of it.
async fn websocket(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, _) = in_time("101", read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    stream
}

/// Two machines in excess of none: one with a WebSocket that may be drained.
async fn drained_world() -> (World, Upstream) {
    let upstream = Upstream::serve(|mut stream, _| async move {
        switch(&mut stream).await;
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
    })
    .await;
    let world = World::with(|config| config.autostop_interval = Duration::from_millis(20));
    (world, upstream)
}

#[tokio::test]
async fn a_websocket_is_told_to_close_when_its_machine_is_drained() {
    let (world, upstream) = drained_world().await;
    let other = Upstream::http("other").await;
    let route = drainable("a1", &upstream);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    let held = kept("a2", other.address);
    world.apply(vec![route, held]);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame, [0x88, 2, 0x03, 0xe9]);
    assert!(world.machines.sleeps().is_empty());
    // New traffic goes to the other one meanwhile.
    assert!(world.get("/").await.body.starts_with("other"));
    drop(socket);
    world.machines.until_asleep(1).await;
    assert_eq!(world.machines.sleeps()[0].0, "a1");
}

#[tokio::test]
async fn a_websocket_is_told_to_close_when_somebody_stops_its_machine() {
    let (world, upstream) = drained_world().await;
    let route = started("a1", upstream.address);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    world.apply(vec![MachineRoute { state: MachineState::Stopped, ..route.clone() }]);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame, [0x88, 2, 0x03, 0xe9]);
    drop(socket);
    eventually("the end", || world.open_streams("a1") == 0).await;
    // What comes to its next life is not told.
    world.apply(vec![route]);
    let mut socket = websocket(&world).await;
    socket.write_all(b"more").await.unwrap();
    assert_eq!(world.open_streams("a1"), 1);
}

#[tokio::test]
async fn a_drain_is_called_off_by_a_request_that_only_this_machine_can_take() {
    let (world, upstream) = drained_world().await;
    let route = drainable("a1", &upstream);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    let held = kept("a2", address());
    world.apply(vec![route.clone(), held]);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
    world.apply(vec![route]);
    let _second = websocket(&world).await;
    assert!(world.machines.sleeps().is_empty() && world.machines.wakes().is_empty());
}

#[tokio::test]
async fn a_drain_is_called_off_where_all_others_are_at_their_hard_limit() {
    let (world, upstream) = drained_world().await;
    let (busy, _never) = gated().await;
    let route = drainable("a1", &upstream);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    let mut full = kept("a2", busy.address);
    full.services[0].concurrency.hard_limit = Some(1);
    world.apply(vec![route, full]);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
    let mut first = TcpStream::connect(world.http).await.unwrap();
    first.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the request", || world.open_streams("a2") == 1).await;
    let _second = websocket(&world).await;
    assert!(world.machines.sleeps().is_empty());
}

#[tokio::test]
async fn nothing_is_drained_for_a_machine_that_its_host_keeps_awake() {
    let (world, upstream) = drained_world().await;
    world.machines.stay_awake.store(true, Ordering::SeqCst);
    let other = Upstream::http("other").await;
    let route = drainable("a1", &upstream);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    let held = kept("a2", other.address);
    world.apply(vec![route, held]);
    eventually("two passes", || world.machines.asked.load(Ordering::SeqCst) >= 2).await;
    let nothing = socket.try_read(&mut [0; 4]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    // Once nothing speaks against it any more, it is.
    world.machines.stay_awake.store(false, Ordering::SeqCst);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
}

#[tokio::test]
async fn a_websocket_that_was_told_to_close_hears_nothing_more() {
    // What the machine says on its own end, before or after it is told.
    for closes_itself in [false, true] {
        let upstream = Upstream::serve(move |mut stream, _| async move {
            switch(&mut stream).await;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).await.unwrap();
            if closes_itself {
                stream.write_all(&[0x88, 2, 0x03, 0xe8]).await.unwrap();
            }
            stream.read_exact(&mut answer).await.unwrap();
            stream.write_all(&[0x81, 1, b'x', 0x88, 0]).await.unwrap();
        })
        .await;
        let world = World::with(|config| config.autostop_interval = Duration::from_millis(20));
        let route = drainable("a1", &upstream);
        world.apply(vec![route.clone()]);
        let mut socket = websocket(&world).await;
        let mut frame = [0; 4];
        socket.write_all(&[0x82, 0x82, 0, 0, 0, 0, 1, 2]).await.unwrap();
        if closes_itself {
            in_time("its close frame", socket.read_exact(&mut frame)).await.unwrap();
            assert_eq!(frame, [0x88, 2, 0x03, 0xe8]);
        }
        let held = kept("a2", address());
        world.apply(vec![route, held]);
        if closes_itself {
            eventually("the drain", || world.machines.asked.load(Ordering::SeqCst) > 0).await;
        } else {
            in_time("our close frame", socket.read_exact(&mut frame)).await.unwrap();
            assert_eq!(frame, [0x88, 2, 0x03, 0xe9]);
        }
        socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await.unwrap();
        let mut more = Vec::new();
        in_time("the end", socket.read_to_end(&mut more)).await.unwrap();
        // One that closed it itself is passed on as it is.
        let expected: &[u8] = if closes_itself { &[0x81, 1, b'x', 0x88, 0] } else { &[] };
        assert_eq!(more, expected);
    }
}

#[tokio::test]
async fn a_websocket_that_its_machine_has_ended_does_not_keep_it_awake() {
    let upstream = Upstream::serve(|mut stream, _| async move { switch(&mut stream).await }).await;
    let world = World::new();
    world.apply(vec![started("a1", upstream.address)]);
    let mut socket = websocket(&world).await;
    assert_eq!(in_time("its end", socket.read(&mut [0; 1])).await.unwrap(), 0);
    tokio::time::pause();
    settle().await;
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    eventually("the stream's end", || world.open_streams("a1") == 0).await;
}

#[tokio::test]
async fn nothing_is_drained_that_became_needed_while_its_host_was_asked() {
    let (world, upstream) = drained_world().await;
    let (answer, answered) = watch::channel(false);
    *world.machines.until_answered.lock() = Some(answered);
    let other = Upstream::http("other").await;
    let route = drainable("a1", &upstream);
    world.apply(vec![route.clone()]);
    let mut socket = websocket(&world).await;
    let held = kept("a2", other.address);
    world.apply(vec![route.clone(), held.clone()]);
    let asked = || world.machines.asked.load(Ordering::SeqCst);
    eventually("the question", || asked() > 0).await;
    // The other one goes: this one is the last.
    world.apply(vec![route.clone()]);
    answer.send_replace(true);
    settle().await;
    let nothing = socket.try_read(&mut [0; 4]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    // It takes traffic as before.
    let _second = websocket(&world).await;
    world.apply(vec![route, held]);
    let mut frame = [0; 4];
    in_time("the close frame", socket.read_exact(&mut frame)).await.unwrap();
}

#[tokio::test]
async fn a_client_of_http_2_is_told_when_its_machine_is_drained() {
    let (busy, open) = gated().await;
    let world = World::with(|config| config.autostop_interval = Duration::from_millis(20));
    let route = drainable("a1", &busy);
    world.apply(vec![route.clone()]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://app.localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    eventually("the request", || world.open_streams("a1") == 1).await;
    let held = kept("a2", address());
    world.apply(vec![route, held]);
    in_time("GOAWAY", async {
        while client.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    // What was begun is finished, and the connection ends with it, though the client keeps it.
    open.send_replace(true);
    let response = in_time("the answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    in_time("the connection's end", connection).await.unwrap().unwrap();
    world.machines.until_asleep(1).await;
}

#[tokio::test]
async fn in_a_day_a_machine_sleeps_once_in_each_pause_and_never_between_requests() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (timeout, expected) in [(HOUR * 2, 0), (HOUR / 2, 24)] {
        let upstream = Upstream::http("one").await;
        let world = World::new();
        world.machines.on_wake("a1", || async { Ok(()) });
        let mut route = idle_route("a1", &upstream);
        route.services[0].idle_timeout = Some(timeout);
        world.apply(vec![route.clone()]);
        for hour in 0..24 {
            assert_eq!(world.get("/").await.status, 200);
            eventually("its end", || world.open_streams("a1") == 0).await;
            world.apply(vec![route.clone()]);
            tokio::time::pause();
            // In steps, so that whatever happens too often has the time to.
            for _ in 0..60 {
                settle().await;
                tokio::time::advance(HOUR / 60).await;
                settle().await;
                if world.machines.sleeps().len() > world.machines.wakes().len() {
                    let asleep = MachineRoute { state: MachineState::Suspended, ..route.clone() };
                    world.apply(vec![asleep]);
                }
            }
            tokio::time::resume();
            let sleeps = world.machines.sleeps().len();
            assert_eq!(sleeps, if expected == 0 { 0 } else { hour + 1 });
        }
        assert_eq!(world.machines.sleeps().len(), expected);
        assert_eq!(world.machines.wakes().len(), expected.saturating_sub(1));
    }
}
