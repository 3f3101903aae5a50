//! Requests for machines that do not run.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use caddis_proxy::*;
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch};

use crate::support::*;

/// Has a machine's service run once it is woken, and lets it wait for `gate` before.
fn wakes_up(
    world: &World,
    machine: &str,
    address: IpAddr,
    gate: Option<watch::Receiver<bool>>,
) -> Arc<Mutex<Vec<Upstream>>> {
    let upstreams: Arc<Mutex<Vec<Upstream>>> = Arc::default();
    let kept = upstreams.clone();
    world.machines.on_wake(machine, move || {
        let (kept, gate) = (kept.clone(), gate.clone());
        async move {
            if let Some(mut gate) = gate {
                gate.wait_for(|is_open| *is_open).await.unwrap();
            }
            let upstream = Upstream::http_at(address, "woken").await;
            kept.lock().push(upstream);
            Ok(())
        }
    });
    upstreams
}

#[tokio::test]
async fn cold_start_of_a_stopped_and_of_a_suspended_machine() {
    for state in [MachineState::Stopped, MachineState::Suspended] {
        let world = World::new();
        let address = address();
        let _upstreams = wakes_up(&world, "a1", address, None);
        world.apply(vec![machine("a1", address, state)]);
        let answer = world.get("/").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.starts_with("woken"));
        // The routes do not show yet that it runs.
        assert_eq!(world.get("/").await.status, 200);
        assert_eq!(world.machines.wakes(), ["a1"]);
        assert!(world.journal.codes().is_empty());
    }
}

#[tokio::test]
async fn cold_start_with_post_and_body() {
    let world = World::new();
    let address = address();
    let _upstreams = wakes_up(&world, "a1", address, None);
    world.apply(vec![stopped("a1", address)]);
    let body = "b".repeat(100_000);
    let request = format!(
        "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n\
        {body}",
        body.len()
    );
    let answer = send(world.http, &request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with(&body));
}

#[tokio::test]
async fn a_herd_of_1000_requests_causes_one_start_and_none_is_served_twice() {
    let world = Arc::new(World::new());
    let address = address();
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let (open, gate) = watch::channel(false);
    let upstreams: Arc<Mutex<Vec<Upstream>>> = Arc::default();
    let (kept, counted) = (upstreams.clone(), seen.clone());
    world.machines.on_wake("a1", move || {
        let (kept, counted, mut gate) = (kept.clone(), counted.clone(), gate.clone());
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            let upstream = Upstream::serve_at(address, move |mut stream, _| {
                let counted = counted.clone();
                async move {
                    while let Some(request) = read_request(&mut stream).await {
                        let path = request.head.split(' ').nth(1).unwrap().to_owned();
                        *counted.lock().entry(path.clone()).or_default() += 1;
                        if respond(&mut stream, &path).await.is_err() {
                            return;
                        }
                    }
                }
            })
            .await;
            kept.lock().push(upstream);
            Ok(())
        }
    });
    world.apply(vec![stopped("a1", address)]);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let world = world.clone();
        requests.spawn(async move {
            let path = format!("/{number}");
            let answer = world.get(&path).await;
            assert_eq!((answer.status, answer.body), (200, path));
        });
    }
    eventually("all waiting", || world.waiting() == 1000).await;
    open.send_replace(true);
    in_time("all answers", async {
        while let Some(result) = requests.join_next().await {
            result.unwrap();
        }
    })
    .await;
    assert_eq!(world.machines.wakes(), ["a1"]);
    let seen = seen.lock();
    assert_eq!(seen.len(), 1000);
    assert!(seen.values().all(|times| *times == 1));
    assert_eq!(world.waiting(), 0);
}

#[tokio::test]
async fn a_port_that_opens_late_is_waited_for() {
    let world = Arc::new(World::new());
    let address = address();
    world.machines.on_wake("a1", || async { Ok(()) });
    world.apply(vec![stopped("a1", address)]);
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("the start", || world.machines.wakes().len() == 1).await;
    let _upstream = Upstream::http_at(address, "late").await;
    let answer = in_time("the answer", request).await.unwrap();
    assert!(answer.status == 200 && answer.body.starts_with("late"));
    assert_eq!(world.machines.wakes().len(), 1);
}

#[tokio::test]
async fn a_machine_that_others_started_is_waited_for_too() {
    let world = Arc::new(World::new());
    let address = address();
    let mut route = started("a1", address);
    route.started_at = std::time::SystemTime::now();
    world.apply(vec![route]);
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("it waits", || world.waiting() == 1).await;
    let _upstream = Upstream::http_at(address, "late").await;
    assert_eq!(in_time("the answer", request).await.unwrap().status, 200);
    assert!(world.machines.wakes().is_empty());
}

#[tokio::test]
async fn a_failed_start_goes_on_with_the_next_candidate() {
    let world = World::new();
    let address = address();
    let refuse = || async { Err(WakeError::Refused("no memory".to_owned())) };
    world.machines.on_wake("a1", refuse);
    let _upstreams = wakes_up(&world, "a2", address, None);
    // The suspended one is tried first.
    let failing = machine("a1", crate::support::address(), MachineState::Suspended);
    world.apply(vec![failing, stopped("a2", address)]);
    assert_eq!(world.get("/").await.status, 200);
    assert_eq!(world.machines.wakes(), ["a1", "a2"]);
    let errors = world.journal.errors.lock();
    assert_eq!((errors[0].code, &errors[0].machine), (Some(ErrorCode::PM01), &Some(id("a1"))));
    assert!(errors[0].text.contains("no memory"));
}

#[tokio::test]
async fn starts_that_all_fail_are_a_503_with_the_code() {
    let table = [
        (WakeError::Refused(String::new()), 503, "PM01"),
        (WakeError::Failed(String::new()), 503, "PM02"),
        (WakeError::WrongState(String::new()), 503, "PM08"),
        (WakeError::Unreachable(String::new()), 503, "PM10"),
        (WakeError::TimedOut(String::new()), 504, "PM03"),
    ];
    for (error, status, code) in table {
        let world = World::new();
        world.machines.on_wake("a1", move || {
            let error = error.clone();
            async { Err(error) }
        });
        world.apply(vec![stopped("a1", address())]);
        let answer = world.get("/").await;
        assert_eq!(answer.status, status);
        assert!(answer.body.starts_with(code), "{}", answer.body);
        // A moment later nobody tries again, and the answer is the same.
        assert!(world.get("/").await.body.starts_with(code));
        assert_eq!(world.machines.wakes().len(), 1);
        let errors = world.journal.errors.lock();
        let (first, last) = (&errors[0].text, &errors.last().unwrap().text);
        let expected = format!("the last start failed: {first}; the next one is possible in ");
        assert!(last.starts_with(&expected), "{last}");
    }
}

#[tokio::test]
async fn readiness_timeout_is_a_504_and_says_what_to_check() {
    let world = World::with(|config| config.ready_timeout = Duration::from_millis(50));
    world.machines.on_wake("a1", || async { Ok(()) });
    world.apply(vec![stopped("a1", address())]);
    let answer = world.get("/").await;
    assert_eq!(answer.status, 504);
    assert!(answer.body.starts_with("PM03"));
    let text = &world.journal.errors.lock()[0].text;
    // It may be told when the machine does not run any more.
    assert!(text.contains("0.0.0.0:8080") && !text.contains("runs"), "{text}");
}

#[tokio::test]
async fn a_woken_machine_gets_traffic_once_its_checks_pass() {
    let world = Arc::new(World::new());
    let address = address();
    let upstreams = wakes_up(&world, "a1", address, None);
    let mut route = stopped("a1", address);
    route.services[0].healthy = false;
    world.apply(vec![route.clone()]);
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("the port", || {
        upstreams.lock().first().is_some_and(|upstream| upstream.connections() > 0)
    })
    .await;
    route.state = MachineState::Started;
    world.apply(vec![route.clone()]);
    assert!(!request.is_finished());
    assert_eq!(world.waiting(), 1);
    route.services[0].healthy = true;
    world.apply(vec![route]);
    assert_eq!(in_time("the answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_costs_nothing() {
    let world = World::new();
    let address = address();
    let (open, gate) = watch::channel(false);
    let upstreams = wakes_up(&world, "a1", address, Some(gate));
    world.apply(vec![stopped("a1", address)]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(get("/left").as_bytes()).await.unwrap();
    eventually("it waits", || world.waiting() == 1).await;
    drop(stream);
    eventually("its place is free", || world.waiting() == 0).await;
    // The start goes on, and serves whoever comes next.
    open.send_replace(true);
    let answer = world.get("/next").await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.machines.wakes().len(), 1);
    assert_eq!(upstreams.lock()[0].connections(), 1, "only the one that stayed was served");
}

#[tokio::test]
async fn a_stream_of_http_2_that_is_reset_while_it_waits_costs_nothing() {
    let world = World::new();
    let address = address();
    let (_open, gate) = watch::channel(false);
    let _upstreams = wakes_up(&world, "a1", address, Some(gate));
    world.apply(vec![stopped("a1", address)]);
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://app.localhost/").body(()).unwrap();
    let (_response, mut body) = client.send_request(request, true).unwrap();
    eventually("it waits", || world.waiting() == 1).await;
    body.send_reset(h2::Reason::CANCEL);
    eventually("its place is free", || world.waiting() == 0).await;
}

#[tokio::test]
async fn the_time_of_a_start_is_not_that_of_the_queue_after_it() {
    let world = Arc::new(World::with(|config| config.queue_timeout = Duration::from_secs(2)));
    let address = address();
    let (open, gate) = watch::channel(false);
    let _upstreams = wakes_up(&world, "a1", address, Some(gate));
    let mut route = stopped("a1", address);
    route.services[0].concurrency.hard_limit = Some(1);
    world.apply(vec![route]);
    let requests: Vec<_> = (0..5)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.get("/").await })
        })
        .collect();
    eventually("all wait", || world.waiting() == 5).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3)).await;
    tokio::time::resume();
    open.send_replace(true);
    for request in requests {
        assert_eq!(in_time("an answer", request).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn more_than_may_wait_is_refused_with_retry_after() {
    let world = World::with(|config| config.max_waiting = 1);
    let address = address();
    let (_open, gate) = watch::channel(false);
    let _upstreams = wakes_up(&world, "a1", address, Some(gate));
    world.apply(vec![stopped("a1", address)]);
    let mut first = TcpStream::connect(world.http).await.unwrap();
    first.write_all(get("/").as_bytes()).await.unwrap();
    eventually("it waits", || world.waiting() == 1).await;
    let answer = world.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with("PR06") && answer.header("retry-after").is_some());
}

#[tokio::test]
async fn cold_start_placeholder_is_for_browsers_only() {
    let world = World::with(|config| {
        let html = "<p>soon".into();
        config.placeholder = Some(Placeholder { html, after: Duration::from_millis(1) });
    });
    let address = address();
    let (open, gate) = watch::channel(false);
    let _upstreams = wakes_up(&world, "a1", address, Some(gate));
    world.apply(vec![stopped("a1", address)]);
    let browser = "GET / HTTP/1.1\r\nHost: app.localhost\r\nAccept: text/html,*/*\r\n\
        Connection: close\r\n\r\n";
    let answer = send(world.http, browser).await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "<p>soon"));
    assert_eq!(answer.header("refresh"), Some("1"));
    open.send_replace(true);
    assert_eq!(world.get("/").await.status, 200);
    assert_eq!(send(world.http, browser).await.status, 200);
    assert_eq!(world.machines.wakes().len(), 1);
}

#[tokio::test]
async fn machines_that_may_not_be_started_are_not() {
    let world = World::new();
    let mut no_autostart = stopped("a1", address());
    no_autostart.services[0].autostart = false;
    let mut cordoned = stopped("a2", address());
    cordoned.cordoned = true;
    let created = machine("a3", address(), MachineState::Other);
    world.apply(vec![no_autostart, cordoned, created]);
    let answer = world.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with("PR01"));
    assert!(world.machines.wakes().is_empty());
}

#[tokio::test]
async fn at_the_soft_limit_one_more_is_started_and_requests_do_not_wait_for_it() {
    let upstream = Upstream::http("running").await;
    let world = World::new();
    let (_open, gate) = watch::channel(false);
    let (second, third) = (address(), address());
    let _two = wakes_up(&world, "a2", second, Some(gate.clone()));
    let _three = wakes_up(&world, "a3", third, Some(gate));
    let mut running = started("a1", upstream.address);
    running.services[0].concurrency.soft_limit = 0;
    world.apply(vec![running, stopped("a2", second), stopped("a3", third)]);
    for _ in 0..5 {
        let answer = world.get("/").await;
        assert!(answer.status == 200 && answer.body.starts_with("running"));
    }
    eventually("the start", || !world.machines.wakes().is_empty()).await;
    assert_eq!(world.machines.wakes().len(), 1);
}

/// The external port whose service nothing in the machine listens for.
const DEAF: u16 = 5432;

/// A machine with a service at port 80, and with another one whose port never opens.
fn with_a_deaf_service(name: &str, address: IpAddr) -> MachineRoute {
    let mut route = stopped(name, address);
    let mut deaf = service(vec![port(DEAF, Handlers { http: true, ..Handlers::default() })]);
    deaf.internal_port = PORT + 1;
    route.services.push(deaf);
    route
}

/// Routes the machine and begins a request for the port that never opens.
async fn ask_the_deaf_service(world: &World, route: MachineRoute) -> TcpStream {
    let own = address();
    let machines = vec![route];
    let routes = AppRoutes { addresses: vec![own], machines, ..AppRoutes::default() };
    world.proxy.apply("app", Some(routes));
    let mut stream = TcpStream::connect((own, DEAF)).await.unwrap();
    stream.write_all(get("/").as_bytes()).await.unwrap();
    eventually("the start", || world.machines.wakes().len() == 1).await;
    stream
}

#[tokio::test]
async fn a_port_that_never_opens_keeps_nobody_from_another_port_of_the_machine() {
    let world = Arc::new(World::new());
    let address = address();
    let (open, gate) = watch::channel(false);
    let _upstreams = wakes_up(&world, "a1", address, Some(gate));
    let _deaf = ask_the_deaf_service(&world, with_a_deaf_service("a1", address)).await;
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("both wait", || world.waiting() == 2).await;
    open.send_replace(true);
    assert_eq!(in_time("the answer", request).await.unwrap().status, 200);
    assert_eq!(world.waiting(), 1);
    assert_eq!(world.machines.wakes(), ["a1"]);
    assert!(world.journal.codes().is_empty());
}

#[tokio::test]
async fn a_port_that_did_not_open_says_nothing_about_another_port_of_the_machine() {
    let world = Arc::new(World::with(|config| config.ready_timeout = Duration::from_millis(50)));
    let address = address();
    let _upstreams = wakes_up(&world, "a1", address, None);
    let mut route = with_a_deaf_service("a1", address);
    route.services[0].healthy = false;
    route.services[0].grace = DEADLINE;
    let mut deaf = ask_the_deaf_service(&world, route.clone()).await;
    let answer = read_answer(&mut deaf).await;
    assert_eq!(answer.status, 504, "{}", answer.body);
    // Its checks are yet to pass.
    route.state = MachineState::Started;
    route.started_at = std::time::SystemTime::now();
    world.apply(vec![route.clone()]);
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("it waits", || world.waiting() == 1 || request.is_finished()).await;
    route.services[0].healthy = true;
    world.apply(vec![route]);
    let answer = in_time("the answer", request).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn a_failed_start_is_one_for_all_ports_of_the_machine() {
    let world = Arc::new(World::new());
    let (open, gate) = watch::channel(false);
    world.machines.on_wake("a1", move || {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            Err(WakeError::Refused("no memory".to_owned()))
        }
    });
    let mut deaf = ask_the_deaf_service(&world, with_a_deaf_service("a1", address())).await;
    let request = tokio::spawn({
        let world = world.clone();
        async move { world.get("/").await }
    });
    eventually("both wait", || world.waiting() == 2).await;
    open.send_replace(true);
    assert!(read_answer(&mut deaf).await.body.starts_with("PM01"));
    assert!(in_time("the answer", request).await.unwrap().body.starts_with("PM01"));
    assert_eq!(world.machines.wakes(), ["a1"]);
}
