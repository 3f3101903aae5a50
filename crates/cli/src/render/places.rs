//! Where services answer.

use caddis_api::{
    addresses::IpAssignment,
    app::App,
    config::{PortHandler, Protocol, Service, ServicePort},
};

/// URLs on the listeners that all apps share, HTTP first.
pub fn of_browsers<'a>(app: &App, services: impl IntoIterator<Item = &'a Service>) -> Vec<String> {
    let Some(urls) = &app.urls else { return Vec::new() };
    let (mut http, mut https) = (false, false);
    for port in services.into_iter().flat_map(|service| service.ports.iter().flatten()) {
        if port.is_shared() {
            https |= port.has(PortHandler::Tls);
            http |= port.has(PortHandler::Http) && !port.has(PortHandler::Tls);
        }
    }
    let urls = [(http, &urls.http), (https, &urls.https)];
    urls.into_iter().filter(|(has, _)| *has).map(|(_, url)| url.clone()).collect()
}

/// All of them: URLs on the listeners that all apps share, other ports on the app's own addresses,
/// and what machines reach at its name within private networks.
pub fn all(app: &App, services: &[Service], addresses: &[IpAssignment]) -> Vec<String> {
    let mut places = of_browsers(app, services);
    let is_private = |address: &&IpAssignment| address.network.is_some();
    let is_own =
        |address: &&IpAssignment| !address.shared && !address.egress && !is_private(address);
    for address in addresses.iter().filter(is_own) {
        for service in services {
            let is_udp = service.protocol() == Protocol::Udp;
            let ports = service.ports.iter().flatten().filter(|port| is_udp || !port.is_shared());
            let suffix = if is_udp { "/udp" } else { "" };
            let own = ports.filter_map(|port| own(&address.ip, port));
            places.extend(own.map(|place| place + suffix));
        }
    }
    if addresses.iter().any(|address| is_private(&address)) {
        let name = format!("{}.flycast", app.name);
        let of_tcp = services.iter().filter(|service| service.protocol() == Protocol::Tcp);
        let ports = of_tcp.flat_map(|service| service.ports.iter().flatten());
        let without_tls =
            ports.filter(|port| !port.has(PortHandler::Tls) && !port.has(PortHandler::PgTls));
        places.extend(without_tls.filter_map(|port| own(&name, port)));
    }
    places
}

fn own(ip: &str, port: &ServicePort) -> Option<String> {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let (first, last) = port.range()?;
    let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
    let (tls, http) = (port.has(PortHandler::Tls), port.has(PortHandler::Http));
    let scheme = match (tls, http) {
        (true, true) => "https://",
        (false, true) => "http://",
        _ => "",
    };
    Some(format!("{scheme}{host}:{ports}"))
}

#[cfg(test)]
mod tests {
    use caddis_api::addresses::IpAssignmentNetwork;
    use serde_json::json;

    use super::*;

    #[test]
    fn services_answer_on_the_shared_listeners_or_on_the_app_s_own_addresses() {
        let mut app: App = serde_json::from_value(json!({
            "id": "x", "internal_numeric_id": 1, "name": "hello", "status": "deployed",
            "network": "default", "network_cidr": "fdaa::/48", "machine_count": 1,
            "volume_count": 0,
            "organization": { "name": "P", "slug": "personal", "internal_numeric_id": 1 },
            "urls": { "hostname": "hello.localhost", "http": "http://hello.localhost:8080",
                "https": "https://hello.localhost:8443" },
        }))
        .unwrap();
        let address = |ip: &str, shared: bool| -> IpAssignment {
            serde_json::from_value(json!({ "ip": ip, "region": "global", "service_name": "",
                "shared": shared, "egress": false, "created_at": "", "network": null }))
            .unwrap()
        };
        let services: Vec<Service> = serde_json::from_value(json!([
            { "internal_port": 80, "ports": [
                { "port": 443, "handlers": ["tls", "http"] },
                { "port": 80, "handlers": ["http"] },
                { "port": 8443, "handlers": ["tls", "http"] },
                { "port": 8080, "handlers": ["http"] } ] },
            { "internal_port": 5432, "ports": [{ "port": 5432 }] },
            { "internal_port": 1, "ports": [{ "start_port": 7000, "end_port": 7010 }] },
            { "internal_port": 53, "protocol": "udp", "ports": [{ "port": 53 }] },
        ]))
        .unwrap();
        let addresses = [
            address("127.0.0.1", true),
            address("127.64.0.1", false),
            address("2001:db8::1", false),
        ];
        assert_eq!(
            all(&app, &services, &addresses),
            [
                "http://hello.localhost:8080",
                "https://hello.localhost:8443",
                "https://127.64.0.1:8443",
                "http://127.64.0.1:8080",
                "127.64.0.1:5432",
                "127.64.0.1:7000-7010",
                "127.64.0.1:53/udp",
                "https://[2001:db8::1]:8443",
                "http://[2001:db8::1]:8080",
                "[2001:db8::1]:5432",
                "[2001:db8::1]:7000-7010",
                "[2001:db8::1]:53/udp",
            ]
        );
        assert_eq!(all(&app, &services[1..2], &addresses[..1]), [""; 0]);
        let mut private = address("fdaa:1:2:0:1::1", false);
        let (name, org_slug) = (String::new(), "personal".to_owned());
        private.network = Some(IpAssignmentNetwork { name, org_slug });
        assert_eq!(
            all(&app, &services, &[private.clone(), private]),
            [
                "http://hello.localhost:8080",
                "https://hello.localhost:8443",
                "http://hello.flycast:80",
                "http://hello.flycast:8080",
                "hello.flycast:5432",
                "hello.flycast:7000-7010",
            ]
        );
        app.urls = None;
        assert_eq!(all(&app, &services[..1], &[]), [""; 0]);
    }
}
