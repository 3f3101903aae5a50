//! Questions for the name of a machine, asked of the network's name server in the network namespace
//! of the server's machines, from an address of the machine's network; beside them the same bytes
//! to a plain echo over UDP there.

use std::{
    fs::File,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use crate::{
    bench::Bench,
    machine::{APP, Machine, PROGRAM, config},
    progress,
    report::Promise,
    server::{IMAGE, Pool},
    statistics::percentile,
};

const ROUNDS: usize = 7;
/// Questions per round, one after the other.
const QUESTIONS: usize = 2_000;
/// The name server, as machines know it.
const SERVER: &str = "[fdaa::3]:53";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Measures the row.
///
/// # Errors
/// When an answer is missing or has no address.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    server.before_start();
    let machine = Machine::create(server.http(), &config(IMAGE, PROGRAM)).await?;
    machine.first_output(String::new()).await?;
    let shown = machine.get().await?;
    let address: Ipv6Addr = shown["private_ip"].as_str().context("a private address")?.parse()?;
    // Of the same network, and nobody's: services and peers are numbered from below.
    let asker = Ipv6Addr::from_bits(address.to_bits() >> 80 << 80 | 0xffff_fffe << 16 | 2);
    let (data, rounds) = (server.data().to_owned(), bench.repeat(ROUNDS, 2));
    let question = question(&format!("{}.vm.{APP}.internal", machine.id()));
    let place = server.place().clone();
    // Mounts are those of the place, where the namespace is known by a name.
    let asking = move || {
        let asking = thread::spawn(move || ask(&data, asker, &question, rounds));
        asking.join().map_err(|_| anyhow!("asking ended in a panic"))?
    };
    progress::run("dns", 0, rounds);
    let (answers, echoes) = place.run(asking)??;
    machine.destroy().await?;
    let report = &mut bench.report;
    let text = "answer to a question for a machine's name, p50";
    report.samples("dns", text, "ms", Promise::AtMost(0.3), &answers);
    let text = "beside it: the same bytes to a plain echo over UDP, p50";
    report.samples("dns-echo", text, "ms", Promise::None, &echoes);
    report.ratio("dns/echo", "an answer against an echo", Promise::None, &answers, &echoes);
    Ok(())
}

/// Medians of each round, milliseconds: of answers, and of echoes.
fn ask(
    data: &Path,
    asker: Ipv6Addr,
    question: &[u8],
    rounds: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let namespace = File::open(namespace(data)?).context("opening the machines' namespace")?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let asker = asker.to_string();
    let address = format!("{asker}/128");
    caddis_testkit::run(["ip", "address", "add", &address, "dev", "lo", "nodad"])?;
    let echo = UdpSocket::bind((&*asker, 0))?;
    let echo_address = echo.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // An empty datagram ends it.
        while let Ok((length @ 1.., from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    let socket = UdpSocket::bind((&*asker, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let server = SERVER.parse()?;
    // The server may hear of the machine a moment after whoever waits for its output.
    let began = Instant::now();
    while let Err(error) = exchange(&socket, server, question).and_then(|answer| check(&answer)) {
        ensure!(began.elapsed() < TIMEOUT, "the name of a machine: {error:#}");
    }
    let (mut answers, mut echoes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (to, medians) in [(server, &mut answers), (echo_address, &mut echoes)] {
            let mut times = Vec::with_capacity(QUESTIONS);
            for _ in 0..QUESTIONS {
                let began = Instant::now();
                let answer = exchange(&socket, to, question)?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
                if to == server {
                    check(&answer)?;
                }
            }
            medians.extend(percentile(&times, 50.0));
        }
    }
    let _ = socket.send_to(&[], echo_address);
    caddis_testkit::run(["ip", "address", "del", &address, "dev", "lo"])?;
    Ok((answers, echoes))
}

fn exchange(socket: &UdpSocket, to: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    socket.send_to(question, to)?;
    let mut buffer = vec![0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).context("no answer")?;
    buffer.truncate(length);
    Ok(buffer)
}

/// An answer has the question's number, no error and a record.
fn check(answer: &[u8]) -> Result<()> {
    let head = answer.first_chunk::<8>().context("an answer without a head")?;
    ensure!(head[..2] == [0, 7] && head[3] & 15 == 0 && head[7] == 1, "{head:?}");
    Ok(())
}

/// A query for AAAA records (RFC 1035, section 4.1), with the number 7.
fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend([0, 0, 28, 0, 1]);
    question
}

/// Where the network namespace of a server's machines is mounted.
fn namespace(data: &Path) -> Result<PathBuf> {
    let claims = std::fs::read_dir("/run/caddis/networks").context("reading claims of networks")?;
    let is_own = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|owner| owner == data.as_os_str().as_encoded_bytes())
    };
    let mut claims = claims.flatten().map(|entry| entry.path());
    Ok(claims.find(is_own).context("the server has no network")?.with_extension("net"))
}
