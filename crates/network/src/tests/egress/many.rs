//! As many connections of as many machines under one address as its blocks of ports are for.
//!
//! All are open at once, both ends in this process. Threads here have tables of open files of their
//! own, so that the limit of one, which a test can't raise, is none of all together.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
    },
};

use super::{Machine, OUTSIDE, Outside, Place, SHARED, assigned, ip, on_a_host, run, start};
use crate::Assignments;

const MACHINES: usize = 64;
/// Connections of each machine over IPv4 and IPv6; the second as many as the first in the long
/// form.
const EACH: [usize; 2] = [1000, 200];
/// Threads that take connections, each a part of all.
const TAKERS: usize = 4;
/// Files that one thread opens, and some.
const FILES: usize = MACHINES * EACH[0] / TAKERS + 200;
/// Until all connections are there.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Gives the calling thread files of its own: standard ones, and one more.
fn own_files(kept: RawFd) {
    unshare(CloneFlags::CLONE_FILES).unwrap();
    let entries = std::fs::read_dir("/proc/thread-self/fd").unwrap();
    let numbers: Vec<RawFd> = entries
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2 && *number != kept) {
        // That of the directory is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Opens connections of a machine, tells its number over each, and reads it back once all are
/// there.
fn connect_all(number: u8, to: SocketAddr, each: usize) -> io::Result<()> {
    own_files(-1);
    let open = |_| {
        let mut connection = TcpStream::connect(to)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.write_all(&[number])?;
        Ok(connection)
    };
    let connections: Vec<TcpStream> = (0..each).map(open).collect::<io::Result<_>>()?;
    for mut connection in connections {
        let mut answer = [0];
        connection.read_exact(&mut answer)?;
        assert_eq!(answer, [number], "what is sent back comes to the machine that has asked");
    }
    Ok(())
}

/// Takes so many connections, tells where they come from and whose they are, and says so over
/// each as soon as it is told to go on.
fn take(
    listener: &TcpListener,
    count: usize,
    seen: &mpsc::Sender<(SocketAddr, u8)>,
    go: &mpsc::Receiver<()>,
) -> io::Result<()> {
    own_files(listener.as_raw_fd());
    let mut taken = Vec::new();
    for _ in 0..count {
        let (mut connection, from) = listener.accept()?;
        let mut number = [0];
        connection.read_exact(&mut number)?;
        let _ = seen.send((from, number[0]));
        taken.push((connection, number));
    }
    // It is over where nobody is there to say so.
    let _ = go.recv();
    for (connection, number) in &mut taken {
        connection.write_all(number)?;
    }
    let _ = go.recv();
    Ok(())
}

#[test]
fn machines_that_share_an_address_have_a_thousand_connections_each_to_one_destination() {
    on_a_host(async || {
        let process = std::process::id();
        run(&format!(
            "[ $(prlimit --pid {process} --nofile --output SOFT --noheadings) -ge {FILES} ] || \
             prlimit --pid {process} --nofile={FILES}:"
        ));
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let outside = Outside::start(&directory).await;
        let network = start(&place).await;
        let mut machines = Vec::new();
        let mut all = Assignments::new();
        for number in 0..MACHINES as u16 {
            let tap = format!("caddis{}", number + 1).leak();
            let address = format!("fdaa:0:5:{:x}::2", number + 1);
            let machine = Machine::start(&network, &directory, tap, &address).await;
            let first = 1024 * number;
            let block = (first.max(1), first + 1023);
            all.extend(assigned(&machine, SHARED, Some(block)));
            machines.push((machine, block));
        }
        network.set_egress(all).await.unwrap();
        let is_long = std::env::var_os("CADDIS_SOAK").is_some();
        for family in [0, 1] {
            let each = EACH[if is_long { 0 } else { family }];
            let to = SocketAddr::new(ip(OUTSIDE[family]), 8);
            let listener = outside.inside.run(move || TcpListener::bind(to).unwrap()).unwrap();
            // It is closed here: what a thread closes is its copy.
            let listener = Arc::new(listener);
            setsockopt(&*listener, ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0))
                .unwrap();
            let (seen, to_see) = mpsc::channel();
            let taking: Vec<_> = (0..TAKERS)
                .map(|_| {
                    let (go, wait) = mpsc::channel();
                    let (listener, seen) = (listener.clone(), seen.clone());
                    let taken = thread::spawn(move || {
                        take(&listener, MACHINES * each / TAKERS, &seen, &wait)
                    });
                    (go, taken)
                })
                .collect();
            drop(seen);
            let connecting: Vec<_> = (0..)
                .zip(&machines)
                .map(|(number, (machine, _))| {
                    // It is in the namespace of who spawns it.
                    let begin = move || thread::spawn(move || connect_all(number, to, each));
                    machine.inside.run(begin).unwrap()
                })
                .collect();
            let (mut froms, mut counts) = (HashMap::new(), [0; MACHINES]);
            for _ in 0..MACHINES * each {
                let (from, number) = to_see.recv_timeout(TIMEOUT).unwrap();
                let (first, last) = machines[usize::from(number)].1;
                assert_eq!(from.ip(), ip(SHARED[family]));
                assert!((first..=last).contains(&from.port()), "{from} of machine {number}");
                assert_eq!(froms.insert(from, number), None, "{from} is there twice");
                counts[usize::from(number)] += 1;
            }
            assert_eq!(counts, [each; MACHINES]);
            for (go, _) in &taking {
                go.send(()).unwrap();
            }
            for connected in connecting {
                connected.join().unwrap().unwrap();
            }
            for (go, taken) in taking {
                drop(go);
                taken.join().unwrap().unwrap();
            }
        }
        assert!(network.refused().unwrap().borrow().is_empty());
    });
}
