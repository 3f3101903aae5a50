//! Settings of services and checks that do nothing because of others.

use crate::config::{
    Autostop, Check, CheckProtocol, CheckType, MachineConfig, PortHandler, Protocol, RestartPolicy,
    Service, ServicePort,
};

/// A line for each.
pub(super) fn warnings(config: &MachineConfig) -> Vec<String> {
    let mut told = Vec::new();
    for (index, service) in config.services.iter().flatten().enumerate() {
        let field = format!("config.services[{index}]");
        of_service(&field, config, service, &mut told);
        for (at, port) in service.ports.iter().flatten().enumerate() {
            of_port(&format!("{field}.ports[{at}]"), port, &mut told);
        }
        for (at, check) in service.checks.iter().flatten().enumerate() {
            of_check(&format!("{field}.checks[{at}]"), config, check, &mut told);
        }
    }
    for (name, check) in config.checks.iter().flatten() {
        let shown: String = name.escape_debug().take(100).collect();
        of_check(&format!("config.checks.{shown}"), config, check, &mut told);
    }
    told
}

fn of_service(field: &str, config: &MachineConfig, service: &Service, told: &mut Vec<String>) {
    let autostop = service.autostop();
    if autostop == Autostop::Off {
        for (name, is_given) in [
            ("idle_timeout", service.idle_timeout.is_some()),
            ("max_drain", service.max_drain.is_some()),
            ("min_machines_running", service.min_machines_running.is_some_and(|count| count > 0)),
        ] {
            if is_given {
                told.push(format!("{field}.{name} has no effect without autostop"));
            }
        }
        return;
    }
    let why_stopped =
        if autostop == Autostop::Suspend { config.why_not_suspendable() } else { None };
    if config.auto_destroy == Some(true) && (autostop == Autostop::Stop || why_stopped.is_some()) {
        told.push(format!(
            "{field}.autostop has no effect with auto_destroy: a stop would destroy the machine{}",
            why_stopped.map(|reason| format!(", and {reason}")).unwrap_or_default()
        ));
        return;
    }
    let has_schedule = config.schedule.as_ref().is_some_and(|schedule| !schedule.is_empty());
    let why_not_started = match (service.protocol(), service.autostart()) {
        _ if has_schedule => Some("it has a schedule"),
        (Protocol::Udp, _) => Some("datagrams start no machine"),
        (Protocol::Tcp, false) => Some("autostart is false"),
        (Protocol::Tcp, true) if service.ports.iter().flatten().next().is_none() => {
            Some("the service has no ports")
        }
        (Protocol::Tcp, true) => None,
    };
    if let Some(reason) = why_not_started {
        told.push(format!(
            "{field} stops the machine when it is idle, and traffic does not start it again: \
             {reason}"
        ));
    }
    if service.idle_timeout.is_some() && service.max_drain.is_some() {
        // It is counted from when the last connection ends.
        told.push(format!("{field}.max_drain has no effect with idle_timeout"));
    }
    if let Some(reason) = why_stopped {
        told.push(format!("{field}.autostop stops the machine instead of suspending it: {reason}"));
    }
}

fn of_port(field: &str, port: &ServicePort, told: &mut Vec<String>) {
    // Which come first does not matter, and none acts twice.
    let handlers = port.handlers.as_deref().unwrap_or_default();
    let mut repeated = Vec::new();
    for (at, handler) in handlers.iter().enumerate() {
        if handlers[..at].contains(handler) && !repeated.contains(handler) {
            repeated.push(*handler);
            told.push(format!("{field}.handlers has {} more than once", handler.as_str()));
        }
    }
    if handlers.contains(&PortHandler::Tcp) && handlers.iter().any(|one| *one != PortHandler::Tcp) {
        told.push(format!("{field}.handlers: tcp has no effect beside others"));
    }
    let tls = port.has(PortHandler::Tls) || port.has(PortHandler::PgTls);
    for (name, is_given, acts, handler) in [
        ("http_options", port.http_options.is_some(), port.has(PortHandler::Http), "http"),
        ("tls_options", port.tls_options.is_some(), tls, "tls or pg_tls"),
        (
            "proxy_proto_options",
            port.proxy_proto_options.is_some(),
            port.has(PortHandler::ProxyProto),
            "proxy_proto",
        ),
    ] {
        if is_given && !acts {
            told.push(format!("{field}.{name} has no effect without the handler {handler}"));
        }
    }
}

fn of_check(field: &str, config: &MachineConfig, check: &Check, told: &mut Vec<String>) {
    let is_http = check.kind == Some(CheckType::Http);
    let is_https = is_http && check.protocol == Some(CheckProtocol::Https);
    for (name, is_given, acts, needed) in [
        ("method", check.method.is_some(), is_http, "in a check of type tcp"),
        ("path", check.path.is_some(), is_http, "in a check of type tcp"),
        ("protocol", check.protocol.is_some(), is_http, "in a check of type tcp"),
        ("headers", check.headers.is_some(), is_http, "in a check of type tcp"),
        ("tls_skip_verify", check.tls_skip_verify == Some(true), is_https, "without https"),
        ("tls_server_name", check.tls_server_name.is_some(), is_https, "without https"),
    ] {
        if is_given && !acts {
            told.push(format!("{field}.{name} has no effect {needed}"));
        }
    }
    if check.liveness.is_some() && config.restart_policy() == RestartPolicy::No {
        told.push(format!("{field}.liveness has no effect with the restart policy no"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(more: Value) -> Vec<String> {
        let mut config = json!({ "image": "a" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        warnings(&serde_json::from_value(config).unwrap())
    }

    fn of_one(service: Value) -> Vec<String> {
        told(json!({ "services": [service] }))
    }

    #[test]
    fn settings_that_can_not_act_together_are_told() {
        for (service, expected) in [
            (json!({ "idle_timeout": "30s" }), "idle_timeout has no effect without autostop"),
            (json!({ "max_drain": "30s" }), "max_drain has no effect without autostop"),
            (json!({ "min_machines_running": 1 }), "min_machines_running has no effect without"),
            (json!({ "autostop": "stop", "autostart": false }), "autostart is false"),
            (json!({ "protocol": "udp", "autostop": "stop" }), "datagrams start no machine"),
            (
                json!({ "autostop": "stop", "ports": [] }),
                "start it again: the service has no ports",
            ),
            (
                json!({ "autostop": "stop", "idle_timeout": "30s", "max_drain": "1m",
                    "ports": [{ "port": 80 }] }),
                "max_drain has no effect with idle_timeout",
            ),
            (
                json!({ "ports": [{ "port": 1, "http_options": {} }] }),
                "config.services[0].ports[0].http_options has no effect without the handler http",
            ),
            (
                json!({ "ports": [{ "port": 1, "tls_options": {}, "handlers": ["http"] }] }),
                "tls_options has no effect without the handler tls or pg_tls",
            ),
            (
                json!({ "ports": [{ "port": 1, "proxy_proto_options": {} }] }),
                "proxy_proto_options has no effect without the handler proxy_proto",
            ),
            (
                json!({ "ports": [{ "port": 1, "handlers": ["http", "tls", "http", "http"] }] }),
                "config.services[0].ports[0].handlers has http more than once",
            ),
            (
                json!({ "ports": [{ "port": 1, "handlers": ["proxy_proto", "proxy_proto"] }] }),
                "config.services[0].ports[0].handlers has proxy_proto more than once",
            ),
            (
                json!({ "ports": [{ "port": 1, "handlers": ["tcp", "http"] }] }),
                "handlers: tcp has no effect beside others",
            ),
            (
                json!({ "checks": [{ "type": "tcp", "path": "/" }] }),
                "config.services[0].checks[0].path has no effect in a check of type tcp",
            ),
            (
                json!({ "checks": [{ "type": "http", "tls_skip_verify": true }] }),
                "checks[0].tls_skip_verify has no effect without https",
            ),
        ] {
            let told = of_one(service.clone());
            assert!(told.len() == 1 && told[0].contains(expected), "{service}: {told:?}");
        }
        let check = json!({ "web": { "type": "tcp", "port": 1, "method": "GET" } });
        assert_eq!(
            told(json!({ "checks": check })),
            ["config.checks.web.method has no effect in a check of type tcp"]
        );
    }

    #[test]
    fn liveness_without_restarts_is_told() {
        let check = json!({ "type": "tcp", "port": 1, "liveness": { "failures": 3 } });
        let with = |policy: &str| {
            told(json!({ "checks": { "a": check }, "restart": { "policy": policy } }))
        };
        let expected = "config.checks.a.liveness has no effect with the restart policy no";
        assert_eq!(with("no"), [expected]);
        assert_eq!(with("on-failure"), [""; 0]);
    }

    #[test]
    fn a_machine_that_can_not_be_suspended_is_stopped_instead() {
        let services = json!([{ "internal_port": 80, "autostop": "suspend" }]);
        for (more, reason) in [
            (json!({ "schedule": "daily" }), "it has a schedule"),
            (json!({ "init": { "swap_size_mb": 1 } }), "it has swap (init.swap_size_mb)"),
            (
                json!({ "guest": { "memory_mb": 4096 } }),
                "it has 4096 MiB of memory, the limit is 2048",
            ),
        ] {
            let mut config = json!({ "services": services });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let expected = format!(
                "config.services[0].autostop stops the machine instead of suspending it: {reason}"
            );
            assert_eq!(told(config).last(), Some(&expected));
        }
    }

    #[test]
    fn a_machine_that_is_not_stopped_when_idle_or_that_traffic_does_not_start_is_told() {
        let with = |autostop: &str, more: Value| {
            let mut config = json!({
                "services": [{ "internal_port": 80, "autostop": autostop, "autostart": true,
                    "ports": [{ "port": 80 }] }],
            });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            told(config)
        };
        let once = "autostop has no effect with auto_destroy: a stop would destroy the machine";
        let large = json!({ "auto_destroy": true, "guest": { "memory_mb": 4096 } });
        for (autostop, more, expected) in [
            ("stop", json!({ "auto_destroy": true }), once),
            ("suspend", large, once),
            ("stop", json!({ "schedule": "daily" }), "start it again: it has a schedule"),
        ] {
            let told = with(autostop, more);
            assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
        }
        assert_eq!(with("suspend", json!({ "auto_destroy": true })), [""; 0]);
    }

    #[test]
    fn settings_that_act_together_are_not_told() {
        let whole = json!({ "autostop": "suspend", "autostart": true, "idle_timeout": "30s",
            "min_machines_running": 1,
            "ports": [{ "port": 443, "handlers": ["tls", "http"], "tls_options": {},
                "http_options": {} }],
            "checks": [{ "type": "http", "protocol": "https", "path": "/",
                "tls_skip_verify": true }] });
        assert_eq!(of_one(whole), [""; 0]);
        assert_eq!(of_one(json!({ "autostop": false, "autostart": false })), [""; 0]);
        // Connections to the machine begin with the client's address, and requests follow.
        for handlers in [json!(["proxy_proto", "http"]), json!(["tls", "http", "proxy_proto"])] {
            let port = json!({ "port": 80, "handlers": handlers,
                "proxy_proto_options": { "version": "v2" }, "http_options": {} });
            assert_eq!(of_one(json!({ "ports": [port] })), [""; 0]);
        }
        assert_eq!(of_one(json!({ "protocol": "udp", "autostart": true })), [""; 0]);
    }
}
