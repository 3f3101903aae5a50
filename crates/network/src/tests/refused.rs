//! What a machine is told of what it does not reach: at once, and the same whether anybody is there
//! or not.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::ErrorKind,
};

use super::{
    Place, on_a_host,
    policies::{Machine, PORT, PROTOCOLS, Protocol, TIMEOUT},
    run,
};
use crate::{MachinePolicy, Network};

/// What it is told of TCP, UDP and ICMP.
fn told(machine: &Machine, to: &str) -> [ErrorKind; 3] {
    PROTOCOLS.map(|protocol| {
        if protocol == Protocol::Tcp {
            return machine.connect(to, PORT, TIMEOUT).unwrap_err().kind();
        }
        let flow = machine.flow(protocol, to, PORT).unwrap();
        flow.set_read_timeout(Some(TIMEOUT)).unwrap();
        let request = if to.contains(':') { 128 } else { 8 };
        flow.send(&[request, 0, 0, 0, 0, 0, 0, 1]).unwrap();
        flow.recv(&mut [0; 64]).unwrap_err().kind()
    })
}

/// A number of the kernel about TCP in the namespace of a machine.
fn counted(machine: &Machine, name: &'static str) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let text = machine.inside.run(read).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|found| found == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

/// Has a network have peers, though none is connected.
async fn with_peers(network: &Network, of: &str) {
    let device = network.attach_peers(128, |name| {
        run(&format!("ip link add {name} type veth peer name tunnel; ip link set tunnel up"));
        File::open("/dev/null")
    });
    drop(device.await.unwrap());
    network.route_peers(BTreeSet::from([of.parse().unwrap()])).await.unwrap();
}

#[test]
fn a_machine_is_refused_at_once_and_does_not_learn_who_there_is_in_other_networks() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let machine = Machine::start(&network, &directory, 1, "fdaa:0:5:7::2").await;
        let foreign = Machine::start(&network, &directory, 2, "fdaa:0:6:7::2").await;
        with_peers(&network, "fdaa:0:6::/48").await;
        // There is something at the first of each, and nothing at the second.
        let places = [
            [foreign.v6(), "fdaa:0:6:9::2".to_owned()],
            [foreign.v4(), "10.201.3.200".to_owned()],
            ["fdaa:0:6:0:1::1", "fdaa:0:8:0:1::1"].map(str::to_owned),
            ["fdaa:0:6::3", "fdaa:0:8::3"].map(str::to_owned),
            ["fdaa:0:6::77:2", "fdaa:0:8::77:2"].map(str::to_owned),
        ];
        let closed = |of: &Machine| MachinePolicy {
            egress: Some(Vec::new()),
            ingress: Some(Vec::new()),
            ..of.policy()
        };
        let policies = [
            Vec::new(),
            vec![closed(&foreign)],
            vec![closed(&machine)],
            vec![closed(&machine), closed(&foreign)],
        ];
        for policies in policies {
            network.set_policies(policies.clone()).await.unwrap();
            for address in places.iter().flatten() {
                let prohibited = if address.contains(':') {
                    ErrorKind::PermissionDenied
                } else {
                    ErrorKind::HostUnreachable
                };
                let expected = [ErrorKind::ConnectionRefused, prohibited, prohibited];
                assert_eq!(told(&machine, address), expected, "{address}, {policies:?}");
            }
        }
        for name in ["TCPSynRetrans", "LockDroppedIcmps"] {
            assert_eq!(counted(&machine, name), 0, "{name}: it has to wait");
        }
    });
}

/// Packets that belong to no connection, which no other chain judges.
#[test]
fn what_belongs_to_no_connection_is_refused_alike_in_other_networks() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let machine = Machine::start(&network, &directory, 1, "fdaa:0:5:7::2").await;
        let foreign = Machine::start(&network, &directory, 2, "fdaa:0:6:7::2").await;
        let closed = MachinePolicy { ingress: Some(Vec::new()), ..foreign.policy() };
        network.set_policies(vec![closed]).await.unwrap();
        // SYN and ACK of no connection: what comes of it is counted.
        machine.run(
            "nft add table inet test; \
             nft add chain inet test out '{ type filter hook output priority 0; }'; \
             nft add rule inet test out tcp flags syn tcp flags set syn,ack; \
             nft add chain inet test come '{ type filter hook prerouting priority -400; }'; \
             nft add rule inet test come tcp flags rst counter",
        );
        for (number, address) in
            [&*foreign.v6(), "fdaa:0:6:9::2", &*foreign.v4(), "10.201.3.200"].iter().enumerate()
        {
            // The answer fits no connection that the machine knows of.
            let _ = machine.connect(address, PORT, super::policies::SILENCE);
            let listed = machine.inside.run(|| run("nft list chain inet test come")).unwrap();
            let expected = format!("packets {} ", number + 1);
            assert!(listed.contains(&expected), "{address}: {listed}");
        }
    });
}
