//! Ports: `port[:internal][/proto[:handler…]]`.

use serde_json::{Map, Value, json};

use super::fields::list;
use crate::CliError;

/// Adds services. One that is there already for the same internal port and protocol gets the port,
/// or the port new handlers. The handler `-` takes away the port of `external:internal`, and of
/// `internal` alone all ports of the service. A service whose last port was taken away goes too.
pub fn add(config: &mut Map<String, Value>, ports: &[String]) -> Result<(), CliError> {
    if ports.is_empty() {
        return Ok(());
    }
    let mut emptied = Vec::new();
    for text in ports {
        let wanted = parse(text)?;
        let services = list(config, "services");
        let same = |service: &Value| {
            service["internal_port"] == wanted.internal
                && service["protocol"].as_str().unwrap_or("tcp") == wanted.protocol
        };
        let known = services.iter().position(same);
        if wanted.handlers == ["-"] {
            if let Some(known) = known
                && let Some(ports) = services[known]["ports"].as_array_mut()
            {
                ports.retain(|port| wanted.internal_is_given && !wanted.is(port));
                emptied.push(known);
            }
            continue;
        }
        let known = known.unwrap_or_else(|| {
            let (protocol, port) = (&wanted.protocol, wanted.internal);
            services.push(json!({ "protocol": protocol, "internal_port": port, "ports": [] }));
            services.len() - 1
        });
        let Some(service) = services[known].as_object_mut() else { continue };
        let ports = list(service, "ports");
        match ports.iter_mut().find(|port| wanted.is(port)) {
            Some(port) if wanted.handlers.is_empty() => {
                port.as_object_mut().map(|port| port.remove("handlers"));
            }
            Some(port) => port["handlers"] = json!(wanted.handlers),
            None => ports.push(wanted.port()),
        }
    }
    // Only now: a later flag may have given a service new ports, and it keeps its other settings
    // then.
    let mut at = 0;
    list(config, "services").retain(|service| {
        at += 1;
        !emptied.contains(&(at - 1))
            || service["ports"].as_array().is_some_and(|ports| !ports.is_empty())
    });
    if list(config, "services").is_empty() {
        config.remove("services");
    }
    Ok(())
}

struct Wanted<'a> {
    first: u16,
    last: Option<u16>,
    internal: u16,
    internal_is_given: bool,
    protocol: &'a str,
    handlers: Vec<&'a str>,
}

impl Wanted<'_> {
    fn port(&self) -> Value {
        let mut port = match self.last {
            Some(last) => json!({ "start_port": self.first, "end_port": last }),
            None => json!({ "port": self.first }),
        };
        if !self.handlers.is_empty() {
            port["handlers"] = json!(self.handlers);
        }
        port
    }

    fn is(&self, port: &Value) -> bool {
        match self.last {
            Some(last) => port["start_port"] == self.first && port["end_port"] == last,
            None => port["port"] == self.first,
        }
    }
}

fn parse(text: &str) -> Result<Wanted<'_>, CliError> {
    let mut elements = text.split('/');
    let (ports, protocol) = (elements.next().unwrap_or_default(), elements.next().unwrap_or("tcp"));
    if elements.next().is_some() {
        return Err(CliError::new("port must be at most two elements (ports/protocol:handler)"));
    }
    let mut words = protocol.split(':');
    let protocol = words.next().filter(|word| !word.is_empty()).unwrap_or("tcp");
    let mut parts = ports.split(':');
    let (external, internal, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if rest.is_some() {
        return Err(CliError::new(
            "port definition must be at most 2 elements (external:internal)",
        ));
    }
    let number = |text: &str, what: &str| {
        text.parse::<u16>().map_err(|_| CliError::new(format!("invalid {what}port")))
    };
    let (first, last) = match external.split_once('-') {
        Some((first, last)) if internal.is_some() => {
            let (first, last) = (number(first, "external ")?, number(last, "external ")?);
            if last < first {
                return Err(CliError::new("invalid external port"));
            }
            (first, Some(last))
        }
        // Where would a range lead?
        Some(_) => return Err(CliError::new("invalid port")),
        None => (number(external, if internal.is_some() { "external " } else { "" })?, None),
    };
    let internal_is_given = internal.is_some();
    let internal = match internal {
        Some(internal) => number(internal, "machine (internal) ")?,
        None => first,
    };
    Ok(Wanted { first, last, internal, internal_is_given, protocol, handlers: words.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(there: Value, ports: &[&str]) -> Result<Value, String> {
        let mut config = json!({ "services": there }).as_object().unwrap().clone();
        let ports: Vec<_> = ports.iter().map(|port| (*port).to_owned()).collect();
        add(&mut config, &ports).map_err(|e| e.to_string())?;
        Ok(config.remove("services").unwrap_or(Value::Null))
    }

    #[test]
    fn ports_become_services_merged_by_internal_port_and_protocol() {
        assert_eq!(
            services(json!([]), &["443:80/tcp:http:tls", "80", "1001/udp"]).unwrap(),
            json!([
                { "protocol": "tcp", "internal_port": 80,
                  "ports": [{ "port": 443, "handlers": ["http", "tls"] }, { "port": 80 }] },
                { "protocol": "udp", "internal_port": 1001, "ports": [{ "port": 1001 }] },
            ])
        );
        let range = services(json!([]), &["8000-8010:80"]).unwrap();
        assert_eq!(range[0]["ports"][0], json!({ "start_port": 8000, "end_port": 8010 }));
    }

    #[test]
    fn a_port_that_is_there_gets_other_handlers_or_goes() {
        let there = json!([{ "protocol": "tcp", "internal_port": 80, "autostop": true,
                             "ports": [{ "port": 80, "handlers": ["http"] },
                                       { "port": 443, "handlers": ["tls"] }] }]);
        let changed = services(there.clone(), &["443:80/tcp:tls:http"]).unwrap();
        assert_eq!(changed[0]["ports"][1], json!({ "port": 443, "handlers": ["tls", "http"] }));
        assert_eq!(changed[0]["autostop"], true);
        let changed = services(there.clone(), &["443:80/tcp:-"]).unwrap();
        assert_eq!(changed[0]["ports"], json!([{ "port": 80, "handlers": ["http"] }]));
        assert_eq!(services(there, &["443:80/tcp:-", "80:80/tcp:-"]).unwrap(), Value::Null);
    }

    #[test]
    fn a_dash_without_internal_port_takes_the_whole_service_away() {
        let web = json!({ "protocol": "tcp", "internal_port": 80, "autostop": true,
                          "ports": [{ "port": 8080 }, { "port": 443, "handlers": ["tls"] }] });
        let silent = json!({ "protocol": "tcp", "internal_port": 9, "ports": [] });
        let dns = json!({ "protocol": "udp", "internal_port": 80,
                          "ports": [{ "start_port": 1, "end_port": 9 }] });
        let there = json!([web, silent, dns]);
        assert_eq!(services(there.clone(), &["80/tcp:-"]).unwrap(), json!([silent, dns]));
        assert_eq!(services(there.clone(), &["80/udp:-"]).unwrap(), json!([web, silent]));
        assert_eq!(
            services(there.clone(), &["1-9:80/udp:-", "80/tcp:-"]).unwrap(),
            json!([silent])
        );
        // It goes by the internal port, and what is not there can stay away.
        for nothing in ["443/tcp:-", "81/tcp:-", "444:80/tcp:-", "1-8:80/udp:-"] {
            assert_eq!(services(there.clone(), &[nothing]).unwrap(), there, "{nothing}");
        }
        let anew = services(there, &["80/tcp:-", "8443:80/tcp:tls"]).unwrap();
        let ports = json!([{ "port": 8443, "handlers": ["tls"] }]);
        assert_eq!(
            anew[0],
            json!({ "protocol": "tcp", "internal_port": 80, "autostop": true, "ports": ports })
        );
        assert_eq!(services(json!([]), &["80", "80/tcp:-"]).unwrap(), Value::Null);
    }

    #[test]
    fn what_is_no_port_is_told_by_its_part() {
        for (text, expected) in [
            ("x", "invalid port"),
            ("70000", "invalid port"),
            ("1-2", "invalid port"),
            ("x:80", "invalid external port"),
            ("9-8:80", "invalid external port"),
            ("80:x", "invalid machine (internal) port"),
            ("1:2:3", "port definition must be at most 2 elements (external:internal)"),
            ("80/tcp/http", "port must be at most two elements (ports/protocol:handler)"),
        ] {
            assert_eq!(services(json!([]), &[text]), Err(expected.to_owned()), "{text}");
        }
    }
}
