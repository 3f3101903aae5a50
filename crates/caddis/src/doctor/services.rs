//! What services of apps need of the host: ports for the listeners, addresses, names.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    sync::mpsc,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Socket, Type};

use super::{Check, served, server::Server};
use crate::{
    serve::CANNOT_ANSWER,
    settings::{Settings, of_links},
};

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(3);
/// How long connecting to the host itself may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The listeners that all apps share.
pub(super) fn listeners(settings: &Settings, server: Option<&Server>) -> Check {
    let name = "services";
    let traffic = &settings.traffic;
    let listeners = [traffic.http_listen, traffic.https_listen];
    let [http, https] = listeners;
    let mend = "free it, or choose another with --http-listen or --https-listen";
    if let Some(server) = server {
        let told: Vec<_> = of_listeners(server).filter(|(app, _)| app.is_none()).collect();
        if !told.is_empty() {
            return Check::warning(name, lines(&told), mend);
        }
        // Whatever flags and settings it was started with.
        return match server.file.services[..] {
            [http, https] => Check::ok(name, format!("{http} and {https} are the server's")),
            _ => Check::ok(name, "the server has none, or does not say: see its log"),
        };
    }
    for (address, is_default) in listeners.into_iter().zip(traffic.are_defaults) {
        let Err(error) = TcpListener::bind(address) else { continue };
        return if is_default {
            let text = "the server starts without it, and services on it don't answer";
            Check::warning(name, format!("{address}: {error}; {text}"), mend)
        } else {
            Check::failed(name, format!("{address}: {error}; the server does not start"), mend)
        };
    }
    Check::ok(name, format!("{http} and {https} are free"))
}

/// The addresses that apps can have as their own.
pub(super) fn addresses(settings: &Settings, server: Option<&Server>) -> Check {
    let name = "addresses of apps";
    let prefixes = &settings.traffic.public_addresses;
    if let Some((prefix, ip, link)) = prefixes.iter().find_map(of_a_link) {
        return Check::warning(
            name,
            format!("{link} has {ip}, which is one of {prefix}: an app may get it"),
            "give addresses with --public-addresses that no link of the host has",
        );
    }
    // Without a server only those of loopback are the host's.
    let is_taken = |prefix: &&IpNet| server.is_some() || prefix.addr().is_loopback();
    if let Some(prefix) = prefixes.iter().filter(is_taken).find(|prefix| !is_local(prefix)) {
        return Check::failed(
            name,
            format!("{prefix}: the host does not take what is sent there"),
            "restart caddis serve, which sets the routes again; ip link set lo up",
        );
    }
    let told = server.into_iter().flat_map(of_listeners).filter(|(app, _)| app.is_some());
    let told: Vec<_> = told.collect();
    if !told.is_empty() {
        return Check::warning(name, lines(&told), "end the program that has the port");
    }
    let shown: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    Check::ok(name, shown.join(", "))
}

/// What a server says of ports that it can't listen to, each with the app that it is for; none for
/// the listeners that all apps share.
fn of_listeners(server: &Server) -> impl Iterator<Item = (Option<&str>, &String)> {
    server.warnings().iter().filter_map(|text| {
        let (whose, _) = text.split_once(CANNOT_ANSWER)?;
        Some((whose.strip_prefix("app "), text))
    })
}

fn lines(told: &[(Option<&str>, &String)]) -> String {
    let texts: Vec<_> = told.iter().map(|(_, text)| text.as_str()).collect();
    texts.join("; ")
}

/// The addresses that connections of machines can come from.
pub(super) fn egress(settings: &Settings, server: Option<&Server>) -> Check {
    let own: Vec<_> = of_links().collect();
    let given = &settings.traffic.egress_addresses;
    let mut check = egress_on(given, &own, &networks(), &gateways());
    let served = served::egress_addresses(settings, server);
    if served != *given {
        let shown: Vec<_> = served.iter().map(ToString::to_string).collect();
        let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        check.message += &format!("; the server has {shown} until it is restarted with these");
    }
    check
}

/// The same on a host with these addresses, networks of its links, and gateways.
fn egress_on(
    prefixes: &[IpNet],
    own: &[(IpAddr, String)],
    networks: &[(IpNet, String)],
    gateways: &[IpAddr],
) -> Check {
    let name = "egress addresses";
    if prefixes.is_empty() {
        return Check::ok(name, "none: connections of machines come from addresses of this host");
    }
    let around = |prefix: &IpNet| networks.iter().find(|(network, _)| prefix.contains(network));
    let swallowed = prefixes.iter().find_map(|prefix| Some((prefix, around(prefix)?)));
    if let Some((prefix, (network, link))) = swallowed {
        return Check::failed(
            name,
            format!("{prefix} has all of {network}: no other host on {link} can be reached"),
            "give a part of it with --egress-addresses in which no other host is",
        );
    }
    let is_gateway = |prefix: &IpNet| gateways.iter().find(|ip| prefix.contains(*ip)).copied();
    if let Some((prefix, ip)) = prefixes.iter().find_map(|it| Some((it, is_gateway(it)?))) {
        return Check::failed(
            name,
            format!("{prefix} has the gateway {ip}: it can't be reached"),
            "give addresses with --egress-addresses that no other host has",
        );
    }
    let is_own = |prefix: &IpNet| own.iter().find(|(ip, _)| prefix.contains(ip));
    if let Some((prefix, (ip, link))) = prefixes.iter().find_map(|it| Some((it, is_own(it)?))) {
        return Check::warning(
            name,
            format!("{link} has {ip}, which is one of {prefix}: it is not allocated"),
            "give addresses with --egress-addresses that no link of the host has",
        );
    }
    let shown = prefixes.iter().map(|prefix| {
        let within = networks.iter().find(|(network, _)| network.contains(prefix));
        match within {
            Some((_, link)) => format!("{prefix} (this host answers for them on {link})"),
            None => format!("{prefix} (a router must lead them to this host)"),
        }
    });
    Check::ok(name, shown.collect::<Vec<_>>().join(", "))
}

/// Networks of the host's links but loopback, with the names of these.
fn networks() -> Vec<(IpNet, String)> {
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    let links = getifaddrs().into_iter().flatten();
    let found = links.filter_map(|link| {
        let network = IpNet::with_netmask(ip(link.address?)?, ip(link.netmask?)?).ok()?.trunc();
        Some((network, link.interface_name))
    });
    let is_a_link = |network: &IpNet| {
        network.prefix_len() < network.max_prefix_len() && !network.addr().is_loopback()
    };
    found.filter(|(network, _)| is_a_link(network)).collect()
}

/// Where the host sends what is for elsewhere, in IPv4.
fn gateways() -> Vec<IpAddr> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    gateways_in(&routes)
}

fn gateways_in(routes: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let number = u32::from_str_radix(line.split_whitespace().nth(2)?, 16).ok()?;
        // In the byte order of the network, read as a number of the host.
        (number != 0).then(|| IpAddr::from(number.to_ne_bytes()))
    };
    routes.lines().skip(1).filter_map(gateway).collect()
}

/// The host names of apps.
pub(super) fn names(settings: &Settings) -> Check {
    let domain = &settings.traffic.domain;
    of_domain(domain, resolves(&format!("caddis-doctor.{domain}")))
}

fn of_domain(domain: &str, resolves: bool) -> Check {
    let name = "names of apps";
    match (resolves, domain) {
        (true, _) => Check::ok(name, format!("APP.{domain} is found on this host")),
        // They need no resolver for it.
        (false, "localhost") => Check::ok(
            name,
            "browsers and curl find APP.localhost; for other programs, apt-get install \
             libnss-myhostname",
        ),
        (false, _) => Check::warning(
            name,
            format!("APP.{domain} is not found on this host"),
            format!("point *.{domain} to the address of --http-listen and --https-listen"),
        ),
    }
}

/// An address of the prefix that a link of the host has, and the link.
fn of_a_link(prefix: &IpNet) -> Option<(IpNet, IpAddr, String)> {
    let mut links = of_links();
    links.find_map(|(ip, link)| prefix.contains(&ip).then_some((*prefix, ip, link)))
}

/// Whether what is sent to the prefix is the host's.
fn is_local(prefix: &IpNet) -> bool {
    let Some(ip) = prefix.hosts().next() else { return true };
    let Ok(listener) = listen(ip) else { return false };
    // The listener is here whether or not packets to the address are.
    let place = listener.local_addr().ok().and_then(|place| place.as_socket());
    place.is_some_and(|place| TcpStream::connect_timeout(&place, CONNECT).is_ok())
}

/// Listens at an address that no link need have.
fn listen(ip: IpAddr) -> io::Result<Socket> {
    let place = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    if ip.is_ipv6() {
        // A local route alone, which is enough for IPv4, is not for the kernel here.
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&place.into())?;
    socket.listen(1)?;
    Ok(socket)
}

/// Whether a name leads to an address, as programs on the host look it up.
fn resolves(name: &str) -> bool {
    let (sender, found) = mpsc::channel();
    let asked = (name.to_owned(), 80);
    // It ends by itself, when the resolver has given up.
    thread::spawn(move || {
        let is_found = asked.to_socket_addrs().is_ok_and(|mut found| found.next().is_some());
        let _ = sender.send(is_found);
    });
    found.recv_timeout(RESOLVE).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Status, server::tests::answering},
        *,
    };
    use crate::settings::ServeArguments;

    fn settings(prefixes: &[&str], http: Option<SocketAddr>) -> (tempfile::TempDir, Settings) {
        let directory = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let arguments = ServeArguments {
            data_dir: Some(directory.path().to_owned()),
            public_addresses: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            http_listen: Some(http.unwrap_or(any)),
            https_listen: Some(any),
            ..ServeArguments::default()
        };
        let settings = arguments.resolve().unwrap();
        (directory, settings)
    }

    #[test]
    fn a_port_that_something_has_is_told_and_fails_where_it_was_chosen() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let (_directory, mut settings) = settings(&[], Some(address));
        let found = listeners(&settings, None);
        assert_eq!(found.status, Status::Failed);
        assert!(found.message.contains(&address.to_string()), "{}", found.message);
        settings.traffic.are_defaults[0] = true;
        assert_eq!(listeners(&settings, None).status, Status::Warning);
        // It is its own then.
        let (http, https) = ("192.0.2.1:80", "192.0.2.1:443");
        let found = listeners(&settings, Some(&answering(&[http, https], &[])));
        assert_eq!(found.status, Status::Ok);
        assert!(found.message.contains(http) && found.message.contains(https), "{found:?}");
        drop(taken);
        assert_eq!(listeners(&settings, None).status, Status::Ok);
    }

    #[test]
    fn what_the_server_warns_of_is_told_by_the_check_that_it_is_about() {
        let (_directory, settings) = settings(&["127.64.0.0/16"], None);
        let of_all = format!("services{CANNOT_ANSWER}127.0.0.1:80: Address in use; trying again");
        let of_one = format!("app a{CANNOT_ANSWER}127.64.0.1:5432: Address in use; trying again");
        let (of_all, of_one) = (of_all.as_str(), of_one.as_str());
        for (warnings, expected) in [
            (&["the disk is full"][..], [None, None]),
            (&[of_all], [Some(of_all), None]),
            (&[of_one], [None, Some(of_one)]),
            (&["the disk is full", of_one, of_all], [Some(of_all), Some(of_one)]),
        ] {
            let server = answering(&["127.0.0.1:80", "127.0.0.1:443"], warnings);
            let checks = [listeners(&settings, Some(&server)), addresses(&settings, Some(&server))];
            for (found, expected) in checks.iter().zip(expected) {
                match expected {
                    Some(text) => {
                        assert_eq!((found.status, &*found.message), (Status::Warning, text));
                    }
                    None => assert_eq!(found.status, Status::Ok, "{found:?}"),
                }
            }
        }
    }

    #[test]
    fn addresses_of_apps_are_no_links_and_the_hosts_once_a_server_runs() {
        let of = |prefix: &str, runs: bool| {
            let (_directory, settings) = settings(&[prefix], None);
            addresses(&settings, runs.then(|| answering(&[], &[])).as_ref()).status
        };
        assert_eq!(of("127.64.0.0/16", true), Status::Ok);
        assert_eq!(of("127.0.0.0/8", false), Status::Warning, "lo has 127.0.0.1");
        // No host has addresses of this range.
        assert_eq!(of("240.0.0.0/29", false), Status::Ok, "it takes them when it starts");
        for prefix in ["240.0.0.0/29", "2001:db8:ffff::/64"] {
            assert_eq!(of(prefix, true), Status::Failed, "somebody has removed the route");
        }
    }

    #[test]
    fn egress_addresses_are_of_no_link_and_of_no_other_host() {
        let own = [("198.51.100.10".parse().unwrap(), "eth0".to_owned())];
        let networks = [
            ("198.51.100.0/24".parse().unwrap(), "eth0".to_owned()),
            ("2001:db8:7::/64".parse().unwrap(), "eth0".to_owned()),
        ];
        let gateways = ["198.51.100.1".parse().unwrap()];
        for (prefixes, status, words) in [
            (&[][..], Status::Ok, "none"),
            (&["198.51.100.64/28"], Status::Ok, "answers for them on eth0"),
            (&["240.0.0.0/29", "2001:db8:8::/64"], Status::Ok, "a router must lead them"),
            (&["198.51.100.8/29"], Status::Warning, "eth0 has 198.51.100.10"),
            (&["198.51.100.0/29"], Status::Failed, "the gateway 198.51.100.1"),
            (&["198.51.100.0/24"], Status::Failed, "no other host on eth0"),
            (&["198.51.0.0/16"], Status::Failed, "no other host on eth0"),
            (&["2001:db8:8::/64", "2001:db8:7::/64"], Status::Failed, "all of 2001:db8:7::/64"),
        ] {
            let prefixes: Vec<_> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
            let found = egress_on(&prefixes, &own, &networks, &gateways);
            assert_eq!(found.status, status, "{prefixes:?}: {}", found.message);
            assert!(found.message.contains(words), "{}", found.message);
        }
        let (_directory, settings) = settings(&[], None);
        assert_eq!(egress(&settings, None).status, Status::Ok, "on this host");
        let routes = "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\neth0\t0000000A\t\
                      00000000\n";
        assert_eq!(gateways_in(routes), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_domain_whose_names_are_not_found_is_told() {
        assert_eq!(of_domain("example.com", true).status, Status::Ok);
        assert_eq!(of_domain("example.com", false).status, Status::Warning);
        let local = of_domain("localhost", false);
        assert!(local.status == Status::Ok && local.message.contains("libnss-myhostname"));
    }
}
