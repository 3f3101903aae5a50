//! Services: which ports, what is done to the streams, and limits.

use std::{collections::HashSet, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    checks::time,
    http::{is_of_the_connection, is_token, is_value},
};
use crate::{
    ApiError,
    config::{
        Concurrency, HeaderChange, HttpOptions, MachineConfig, PortHandler, Protocol, Service,
        ServicePort, TlsOptions,
    },
};

/// Most services of a machine. The reference names no number.
pub const MAX_SERVICES: usize = 64;
/// Most ports on the app's addresses of a machine's services, those within ranges included: each
/// is listened on. The reference names no number.
pub const MAX_PORTS: usize = 512;
/// Longest idle timeout and drain.
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
/// Longest timeouts of HTTP connections, seconds.
const MAX_HTTP_SECONDS: u32 = 24 * 3600;
/// Most headers that are changed in a response.
const MAX_HEADERS: usize = 64;

/// Fills in what services leave open, and writes `autostop` in the form that replies have.
pub(super) fn complete(raw: &mut Map<String, Value>, config: &MachineConfig) {
    let Some(Value::Array(services)) = raw.get_mut("services") else { return };
    for (raw, service) in services.iter_mut().zip(config.services.iter().flatten()) {
        let Value::Object(raw) = raw else { continue };
        raw.entry("force_instance_key").or_insert(Value::Null);
        raw.insert("protocol".to_owned(), json!(service.protocol()));
        if let (Some(autostop), Some(stored)) = (service.autostop, raw.get_mut("autostop")) {
            *stored = json!(autostop);
        }
    }
}

pub(super) fn check(services: &[Service]) -> Result<(), ApiError> {
    if services.len() > MAX_SERVICES {
        return Err(ApiError::invalid(format!(
            "invalid config.services, cannot exceed {MAX_SERVICES}"
        )));
    }
    let mut taken = HashSet::new();
    for (index, service) in services.iter().enumerate() {
        let field = format!("config.services[{index}]");
        check_service(&field, service)?;
        for (at, port) in service.ports.iter().flatten().enumerate() {
            let field = format!("{field}.ports[{at}]");
            let (first, last) = check_port(&field, service, port)?;
            for number in first..=last {
                if !taken.insert((service.protocol(), number)) {
                    return Err(ApiError::invalid(format!(
                        "invalid {field}, port {number} is given twice"
                    )));
                }
                if taken.len() > MAX_PORTS {
                    return Err(ApiError::invalid(format!(
                        "invalid {field}, a machine cannot have more than {MAX_PORTS} ports, \
                         those within ranges included"
                    )));
                }
            }
        }
    }
    Ok(())
}

fn check_service(field: &str, service: &Service) -> Result<(), ApiError> {
    if service.internal_port.is_none_or(|port| port == 0) {
        return Err(ApiError::invalid(format!(
            "invalid {field}.internal_port, must be 1 to 65535"
        )));
    }
    let shortest = Duration::from_millis(1);
    time(&format!("{field}.idle_timeout"), service.idle_timeout, shortest, MAX_TIME)?;
    time(&format!("{field}.max_drain"), service.max_drain, shortest, MAX_TIME)?;
    let Some(Concurrency { soft_limit, hard_limit, .. }) = service.concurrency else {
        return Ok(());
    };
    for (name, limit) in [("soft_limit", soft_limit), ("hard_limit", hard_limit)] {
        if limit == Some(0) {
            return Err(ApiError::invalid(format!(
                "invalid {field}.concurrency.{name}, must be at least 1"
            )));
        }
    }
    if soft_limit.zip(hard_limit).is_some_and(|(soft, hard)| soft > hard) {
        return Err(ApiError::invalid(format!(
            "invalid {field}.concurrency, soft_limit cannot exceed hard_limit"
        )));
    }
    Ok(())
}

/// Gives the first and the last port.
fn check_port(field: &str, service: &Service, port: &ServicePort) -> Result<(u16, u16), ApiError> {
    let fail = |fault: &str| Err(ApiError::invalid(format!("invalid {field}{fault}")));
    let range = match (port.port, port.start_port, port.end_port) {
        (Some(0), ..) => return fail(".port, must be 1 to 65535"),
        (Some(port), None, None) => (port, port),
        (Some(_), ..) => return fail(", give either port or start_port and end_port"),
        (None, Some(0), Some(_)) => return fail(".start_port, must be 1 to 65535"),
        (None, Some(start), Some(end)) if start > end => {
            return fail(".end_port, cannot be below start_port");
        }
        (None, Some(start), Some(end)) => (start, end),
        (None, ..) => return fail(".port, it is required: give port, or start_port and end_port"),
    };
    if service.protocol() == Protocol::Udp {
        if port.handlers.iter().flatten().any(|handler| *handler != PortHandler::Tcp) {
            return fail(".handlers, UDP has none");
        }
        let internal = service.internal_port.unwrap_or_default();
        if range != (internal, internal) {
            return fail(", UDP needs the same port as internal_port");
        }
    }
    let tls = port.has(PortHandler::Tls);
    if port.has(PortHandler::PgTls) && (tls || port.has(PortHandler::Http)) {
        return fail(".handlers, pg_tls excludes tls and http");
    }
    if port.force_https == Some(true) && !port.has(PortHandler::Http) {
        return fail(".force_https, it needs the handler http");
    }
    if port.force_https == Some(true) && tls {
        return fail(".force_https, the handler tls makes it HTTPS already");
    }
    check_http(&format!("{field}.http_options"), port.http_options.as_ref())?;
    check_tls(&format!("{field}.tls_options"), port.tls_options.as_ref())?;
    Ok(range)
}

fn check_http(field: &str, options: Option<&HttpOptions>) -> Result<(), ApiError> {
    let Some(options) = options else { return Ok(()) };
    for (name, seconds) in [
        ("idle_timeout", options.idle_timeout),
        ("headers_read_timeout", options.headers_read_timeout),
    ] {
        if seconds.is_some_and(|seconds| !(1..=MAX_HTTP_SECONDS).contains(&seconds)) {
            return Err(ApiError::invalid(format!(
                "invalid {field}.{name}, must be 1 to {MAX_HTTP_SECONDS} seconds"
            )));
        }
    }
    let headers = options.response.as_ref().and_then(|response| response.headers.as_ref());
    let Some(headers) = headers else { return Ok(()) };
    let field = format!("{field}.response.headers");
    if headers.len() > MAX_HEADERS {
        return Err(ApiError::invalid(format!("invalid {field}, cannot exceed {MAX_HEADERS}")));
    }
    for (name, change) in headers {
        let shown: String = name.escape_debug().take(100).collect();
        if !is_token(name) || is_of_the_connection(name) {
            return Err(ApiError::invalid(format!(
                "invalid {field}, '{shown}' is not a header that can be changed"
            )));
        }
        let is_right = match change {
            HeaderChange::Remove(remove) => !remove,
            HeaderChange::Set(value) => is_value(value),
            HeaderChange::SetAll(values) => values.iter().all(|value| is_value(value)),
        };
        if !is_right {
            return Err(ApiError::invalid(format!(
                "invalid {field}.{shown}, use a text or a list of texts without control \
                 characters, or false to remove it"
            )));
        }
    }
    Ok(())
}

fn check_tls(field: &str, options: Option<&TlsOptions>) -> Result<(), ApiError> {
    let Some(options) = options else { return Ok(()) };
    let is_wrong = |protocol: &String| protocol.is_empty() || protocol.len() > 255;
    if options.alpn.iter().flatten().any(is_wrong) {
        return Err(ApiError::invalid(format!(
            "invalid {field}.alpn, a protocol has 1 to 255 bytes"
        )));
    }
    if options.versions.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::invalid(format!(
            "invalid {field}.versions, it is empty: use TLSv1.2, TLSv1.3 or both"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        RawConfig,
        config::Autostop,
        validate::{normalise, read},
    };

    fn normalised(services: &Value) -> Result<(RawConfig, MachineConfig), String> {
        let config = json!({ "image": "a", "services": services });
        normalise(serde_json::from_value(config).unwrap()).map_err(|error| error.message)
    }

    #[test]
    fn services_are_stored_as_sent_but_for_protocol_key_and_the_form_of_autostop() {
        for (sent, stored, typed) in [
            (json!("off"), json!(false), Autostop::Off),
            (json!("false"), json!(false), Autostop::Off),
            (json!(false), json!(false), Autostop::Off),
            (json!("stop"), json!(true), Autostop::Stop),
            (json!(true), json!(true), Autostop::Stop),
            (json!("suspend"), json!("suspend"), Autostop::Suspend),
            (json!(null), json!(null), Autostop::Off),
        ] {
            let sent = json!([{ "internal_port": 80, "autostop": sent, "odd": [1] }]);
            let (raw, config) = normalised(&sent).unwrap();
            let expected = json!([{ "internal_port": 80, "autostop": stored, "odd": [1],
                "protocol": "tcp", "force_instance_key": null }]);
            assert_eq!(raw.field("services").unwrap(), expected);
            assert_eq!(config.services.unwrap()[0].autostop(), typed);
        }
        let udp = json!([{ "internal_port": 53, "protocol": "udp", "ports": [{ "port": 53 }] }]);
        let (raw, config) = normalised(&udp).unwrap();
        assert_eq!(raw.field("services").unwrap()[0]["protocol"], "udp");
        let service = &config.services.unwrap()[0];
        assert!(service.autostart() && service.needs_own_address());
    }

    #[test]
    fn the_old_form_of_no_autostart_is_read_as_the_new_one_and_stored_as_sent() {
        let sent = json!({ "image": "a", "disable_machine_autostart": true,
            "services": [{ "internal_port": 80, "autostart": true }] });
        let (raw, config) = normalise(serde_json::from_value(sent).unwrap()).unwrap();
        assert!(!config.services.unwrap()[0].autostart());
        assert_eq!(raw.field("services").unwrap()[0]["autostart"], true);
        assert!(!read(&raw).unwrap().services.unwrap()[0].autostart());
    }

    #[test]
    fn what_the_shared_listeners_can_not_serve_needs_an_address() {
        for (port, expected) in [
            (json!({ "port": 80, "handlers": ["http"] }), false),
            (json!({ "port": 443, "handlers": ["tls", "http"] }), false),
            (json!({ "port": 443, "handlers": ["tls"] }), false),
            (json!({ "port": 80 }), true),
            (json!({ "port": 80, "handlers": ["tls", "http"] }), true),
            (json!({ "port": 443 }), true),
            (json!({ "port": 443, "handlers": ["http"] }), true),
            (json!({ "port": 443, "handlers": ["pg_tls"] }), true),
            (json!({ "port": 8080, "handlers": ["http"] }), true),
            (json!({ "port": 5432 }), true),
            (json!({ "start_port": 80, "end_port": 81, "handlers": ["http"] }), true),
        ] {
            let service = json!([{ "internal_port": 80, "ports": [port] }]);
            let (_, config) = normalised(&service).unwrap();
            assert_eq!(config.services.unwrap()[0].needs_own_address(), expected, "{port}");
        }
    }

    #[test]
    fn a_port_may_have_all_that_the_reference_knows() {
        let ports = json!([
            { "port": 80, "handlers": ["http"], "force_https": true,
              "http_options": { "compress": true, "h2_backend": true, "idle_timeout": 60,
                "headers_read_timeout": 10, "response": { "pristine": true, "headers":
                  { "Server": false, "X-A": "b", "Link": ["</a>", "</b>"] } },
                "replay_cache": [{ "path_prefix": "/", "ttl_seconds": 10, "type": "cookie" }] } },
            { "port": 443, "handlers": ["tls", "http"], "tls_options":
              { "alpn": ["h2", "http/1.1"], "versions": ["TLSv1.2", "TLSv1.3"],
                "default_self_signed": true } },
            { "port": 5432, "handlers": ["pg_tls"] },
            { "port": 25, "handlers": ["proxy_proto"], "proxy_proto_options":
              { "version": "v2", "fly_src": true } },
            { "start_port": 8000, "end_port": 8010 },
        ]);
        let service = json!([{ "internal_port": 8080, "protocol": "tcp", "ports": ports,
            "concurrency": { "type": "requests", "soft_limit": 20, "hard_limit": 25 },
            "autostop": "suspend", "autostart": true, "min_machines_running": 1,
            "idle_timeout": "30s", "max_drain": "1m" }]);
        let (_, config) = normalised(&service).unwrap();
        assert_eq!(config.services.unwrap()[0].max_drain.unwrap().0, Duration::from_secs(60));
        let only_hard = json!([{ "internal_port": 80, "concurrency": { "hard_limit": 5 } }]);
        normalised(&only_hard).unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let port = |port: Value| json!([{ "internal_port": 80, "ports": [port] }]);
        let udp =
            |port: Value| json!([{ "internal_port": 53, "protocol": "udp", "ports": [port] }]);
        let with = |more: Value| {
            let mut service = json!({ "internal_port": 80 });
            service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!([service])
        };
        let headers = |headers: Value| {
            port(json!({ "port": 80, "handlers": ["http"],
                "http_options": { "response": { "headers": headers } } }))
        };
        let many_headers: Map<_, _> = (0..65).map(|n| (format!("x-{n}"), json!("a"))).collect();
        let twice = json!([{ "internal_port": 80, "ports": [{ "port": 80 }] },
            { "internal_port": 81, "ports": [{ "start_port": 79, "end_port": 80 }] }]);
        let many: Vec<_> = (1..=65).map(|port| json!({ "internal_port": port })).collect();
        for (services, expected) in [
            (json!([{}]), "config.services[0].internal_port, must be 1 to 65535"),
            (with(json!({ "internal_port": 0 })), "internal_port, must be 1 to 65535"),
            (with(json!({ "internal_port": 70000 })), "config.services[0].internal_port"),
            (with(json!({ "protocol": "sctp" })), "config.services[0].protocol"),
            (with(json!({ "autostop": "never" })), "autostop: use off, stop, suspend"),
            (with(json!({ "autostop": 1 })), "autostop: use off, stop, suspend"),
            (with(json!({ "idle_timeout": "0s" })), "idle_timeout, must be 1ms to 24h0m0s"),
            (with(json!({ "idle_timeout": 30 })), "idle_timeout, 30 ns is too short"),
            (with(json!({ "max_drain": "25h" })), "max_drain, must be 1ms to 24h0m0s"),
            (with(json!({ "min_machines_running": -1 })), "min_machines_running"),
            (
                with(json!({ "concurrency": { "soft_limit": 0 } })),
                "concurrency.soft_limit, must be at least 1",
            ),
            (
                with(json!({ "concurrency": { "hard_limit": 0 } })),
                "concurrency.hard_limit, must be at least 1",
            ),
            (
                with(json!({ "concurrency": { "soft_limit": 3, "hard_limit": 2 } })),
                "concurrency, soft_limit cannot exceed hard_limit",
            ),
            (with(json!({ "concurrency": { "type": "bytes" } })), "concurrency.type"),
            (port(json!({})), "config.services[0].ports[0].port, it is required"),
            (port(json!({ "port": 0 })), "ports[0].port, must be 1 to 65535"),
            (port(json!({ "port": 65536 })), "ports[0].port"),
            (port(json!({ "start_port": 1 })), "ports[0].port, it is required"),
            (port(json!({ "start_port": 0, "end_port": 1 })), "ports[0].start_port, must be"),
            (
                port(json!({ "start_port": 9, "end_port": 8 })),
                "ports[0].end_port, cannot be below start_port",
            ),
            (
                port(json!({ "port": 9, "start_port": 9, "end_port": 9 })),
                "ports[0], give either port or start_port and end_port",
            ),
            (port(json!({ "port": 80, "handlers": ["https"] })), "ports[0].handlers[0]"),
            (
                port(json!({ "port": 80, "handlers": ["pg_tls", "tls"] })),
                "ports[0].handlers, pg_tls excludes tls and http",
            ),
            (
                port(json!({ "port": 80, "force_https": true })),
                "ports[0].force_https, it needs the handler http",
            ),
            (
                port(json!({ "port": 443, "handlers": ["tls", "http"], "force_https": true })),
                "ports[0].force_https, the handler tls makes it HTTPS already",
            ),
            (udp(json!({ "port": 53, "handlers": ["http"] })), "handlers, UDP has none"),
            (udp(json!({ "port": 54 })), "UDP needs the same port as internal_port"),
            (twice, "config.services[1].ports[0], port 80 is given twice"),
            (
                port(json!({ "start_port": 1000, "end_port": 1512 })),
                "cannot have more than 512 ports",
            ),
            (json!(many), "config.services, cannot exceed 64"),
            (
                port(json!({ "port": 80, "http_options": { "idle_timeout": 0 } })),
                "http_options.idle_timeout, must be 1 to",
            ),
            (headers(json!({ "a b": "c" })), "'a b' is not a header that can be changed"),
            (headers(json!({ "Connection": false })), "'Connection' is not a header"),
            (headers(json!({ "a": "b\nc" })), "response.headers.a, use a text"),
            (headers(json!({ "a": true })), "or false to remove it"),
            (headers(json!({ "a": 1 })), "config.services[0].ports[0].http_options.response"),
            (headers(json!(many_headers)), "response.headers, cannot exceed 64"),
            (
                port(json!({ "port": 1, "tls_options": { "versions": ["SSLv3"] } })),
                "tls_options.versions[0]",
            ),
            (
                port(json!({ "port": 1, "tls_options": { "versions": [] } })),
                "tls_options.versions, it is empty",
            ),
            (port(json!({ "port": 1, "tls_options": { "alpn": [""] } })), "tls_options.alpn"),
            (
                port(json!({ "port": 1, "proxy_proto_options": { "version": "v3" } })),
                "proxy_proto_options.version",
            ),
            (json!([[80]]), "invalid config.services[0]"),
        ] {
            let error = normalised(&services).unwrap_err();
            assert!(error.contains(expected), "{services} gave {error}");
        }
    }

    #[test]
    fn the_same_port_of_both_protocols_is_no_port_twice() {
        let both = json!([{ "internal_port": 53, "ports": [{ "port": 53 }] },
            { "internal_port": 53, "protocol": "udp", "ports": [{ "port": 53 }] }]);
        normalised(&both).unwrap();
    }
}
