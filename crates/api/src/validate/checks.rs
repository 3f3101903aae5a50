//! Health checks: of services, and of the machine.

use std::time::Duration;

use super::http::{is_of_the_connection, is_path, is_token, is_value};
use crate::{
    ApiDuration, ApiError,
    checks::OF_SERVICES,
    config::{Check, CheckType, MachineConfig},
};

/// Most checks of a machine, those of its services included. The reference names no number.
pub const MAX_CHECKS: usize = 64;
/// Shortest time between two attempts of a check.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest interval, timeout and grace period.
pub const MAX_CHECK_TIME: Duration = Duration::from_secs(3600);
/// Longest name of a check of the machine, and of a server in TLS, bytes.
const MAX_NAME: usize = 253;
/// Most failures in a row that may be waited for.
const MAX_FAILURES: u32 = 1000;

/// Whose check it is: what it is called, and where its port comes from.
enum Owner {
    Machine,
    Service,
}

pub(super) fn check(config: &MachineConfig) -> Result<(), ApiError> {
    let mut count = config.checks.as_ref().map_or(0, |checks| checks.len());
    for (name, check) in config.checks.iter().flatten() {
        let shown: String = name.escape_debug().take(100).collect();
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(ApiError::invalid(format!(
                "invalid config.checks, '{shown}' is not a name: use 1 to {MAX_NAME} printable \
                 characters"
            )));
        }
        if name.starts_with(OF_SERVICES) {
            return Err(ApiError::invalid(format!(
                "invalid config.checks, '{shown}' cannot begin with {OF_SERVICES}: such names are \
                 of checks of services"
            )));
        }
        one(&format!("config.checks.{shown}"), check, Owner::Machine)?;
    }
    for (index, service) in config.services.iter().flatten().enumerate() {
        let checks = service.checks.as_deref().unwrap_or_default();
        count += checks.len();
        for (at, check) in checks.iter().enumerate() {
            one(&format!("config.services[{index}].checks[{at}]"), check, Owner::Service)?;
        }
    }
    if count > MAX_CHECKS {
        return Err(ApiError::invalid(format!(
            "invalid config.checks, {count} with those of services, cannot exceed {MAX_CHECKS}"
        )));
    }
    Ok(())
}

fn one(field: &str, check: &Check, owner: Owner) -> Result<(), ApiError> {
    let fail = |name: &str, fault: &str| {
        Err(ApiError::invalid(format!("invalid {field}.{name}, {fault}")))
    };
    let Some(kind) = check.kind else {
        return fail("type", "it is required: use tcp or http");
    };
    match (check.port, owner) {
        (Some(0), _) => return fail("port", "must be 1 to 65535"),
        (None, Owner::Machine) => {
            return fail("port", "it is required: only a service's check has a default");
        }
        _ => {}
    }
    let shortest = Duration::from_millis(1);
    for (name, given, minimum) in [
        ("interval", check.interval, MIN_CHECK_INTERVAL),
        ("timeout", check.timeout, shortest),
        ("grace_period", check.grace_period, Duration::ZERO),
    ] {
        time(&format!("{field}.{name}"), given, minimum, MAX_CHECK_TIME)?;
    }
    if kind == CheckType::Http {
        if check.path.as_deref().is_some_and(|path| !is_path(path)) {
            return fail("path", "use a path that starts with / and has no spaces");
        }
        if check.method.as_deref().is_some_and(|method| !is_token(method)) {
            return fail("method", "use a method of HTTP, such as GET or HEAD");
        }
    }
    for (index, header) in check.headers.iter().flatten().enumerate() {
        let field = format!("headers[{index}]");
        if !is_token(&header.name) || is_of_the_connection(&header.name) {
            return fail(&format!("{field}.name"), "it is not a header that a check can send");
        }
        if !header.values.iter().all(|value| is_value(value)) {
            return fail(&format!("{field}.values"), "they can't contain control characters");
        }
    }
    let server = check.tls_server_name.as_deref();
    if server.is_some_and(|name| {
        name.len() > MAX_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic())
    }) {
        return fail("tls_server_name", "it is not a host name");
    }
    let failures = check.liveness.and_then(|liveness| liveness.failures);
    if failures.is_some_and(|failures| !(1..=MAX_FAILURES).contains(&failures)) {
        return fail("liveness.failures", &format!("must be 1 to {MAX_FAILURES}"));
    }
    Ok(())
}

/// Refuses a time that is too short or too long.
pub(super) fn time(
    field: &str,
    given: Option<ApiDuration>,
    minimum: Duration,
    maximum: Duration,
) -> Result<(), ApiError> {
    let Some(given) = given else { return Ok(()) };
    if let Err(reason) = given.check_unit() {
        return Err(ApiError::invalid(format!("invalid {field}, {reason}")));
    }
    if given.0 < minimum || given.0 > maximum {
        let (minimum, maximum) = (ApiDuration(minimum), ApiDuration(maximum));
        return Err(ApiError::invalid(format!("invalid {field}, must be {minimum} to {maximum}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{RawConfig, validate::normalise};

    fn checked(fields: &Value) -> Result<(), String> {
        let mut config = json!({ "image": "a" }).as_object().unwrap().clone();
        config.extend(fields.as_object().unwrap().clone());
        normalise(RawConfig::from(config)).map(drop).map_err(|error| error.message)
    }

    fn of_machine(check: Value) -> Value {
        json!({ "checks": { "web": check } })
    }

    fn of_service(check: Value) -> Value {
        json!({ "services": [{ "internal_port": 80, "checks": [check] }] })
    }

    #[test]
    fn a_check_may_say_all_that_the_reference_knows_and_what_is_ours() {
        let whole = json!({ "type": "http", "port": 8080, "interval": "15s", "timeout": "2s",
            "grace_period": "0s", "method": "GET", "path": "/health?full=1", "protocol": "https",
            "headers": [{ "name": "X-Forwarded-Proto", "values": ["https", ""] }],
            "tls_skip_verify": true, "tls_server_name": "example.com",
            "liveness": { "failures": 3 } });
        checked(&of_service(whole.clone())).unwrap();
        let mut informational = whole;
        informational["kind"] = json!("informational");
        checked(&of_machine(informational)).unwrap();
        checked(&of_service(json!({ "type": "tcp" }))).unwrap();
        checked(&of_service(json!({ "type": "tcp", "interval": 10_000_000_000_u64 }))).unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        let tcp = |more: Value| {
            let mut check = json!({ "type": "tcp", "port": 80 });
            check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of_machine(check)
        };
        let http = |more: Value| {
            let mut check = json!({ "type": "http" });
            check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of_service(check)
        };
        let many: Vec<_> = (0..65).map(|_| json!({ "type": "tcp" })).collect();
        for (config, expected) in [
            (of_machine(json!({ "port": 80 })), "config.checks.web.type, it is required"),
            (of_machine(json!({ "type": "script", "port": 80 })), "config.checks.web.type"),
            (of_machine(json!({ "type": "tcp" })), "config.checks.web.port, it is required"),
            (tcp(json!({ "port": 0 })), "config.checks.web.port, must be 1 to 65535"),
            (tcp(json!({ "port": 70000 })), "config.checks.web.port"),
            (tcp(json!({ "interval": "500ms" })), "web.interval, must be 1s to 1h0m0s"),
            (tcp(json!({ "interval": 15 })), "web.interval, 15 ns is too short"),
            (tcp(json!({ "timeout": "0s" })), "web.timeout, must be 1ms to"),
            (tcp(json!({ "grace_period": "2h" })), "web.grace_period, must be"),
            (tcp(json!({ "kind": "liveness" })), "config.checks.web.kind"),
            (tcp(json!({ "liveness": { "failures": 0 } })), "liveness.failures, must be 1 to"),
            (tcp(json!({ "tls_server_name": "a b" })), "web.tls_server_name"),
            (http(json!({ "path": "health" })), "config.services[0].checks[0].path"),
            (http(json!({ "path": "/a b" })), "checks[0].path"),
            (http(json!({ "method": "GET /" })), "checks[0].method"),
            (http(json!({ "protocol": "gopher" })), "checks[0].protocol"),
            (
                http(json!({ "headers": [{ "name": "a b", "values": [] }] })),
                "checks[0].headers[0].name",
            ),
            (
                http(json!({ "headers": [{ "name": "Content-Length", "values": ["5"] }] })),
                "checks[0].headers[0].name",
            ),
            (
                http(json!({ "headers": [{ "name": "a", "values": ["b\r\nc: d"] }] })),
                "checks[0].headers[0].values",
            ),
            (
                json!({ "services": [{ "internal_port": 80, "checks": many }] }),
                "config.checks, 65 with those of services, cannot exceed 64",
            ),
            (json!({ "checks": { "": { "type": "tcp", "port": 1 } } }), "'' is not a name"),
            (
                json!({ "checks": { "servicecheck-00-tcp-1": { "type": "tcp", "port": 1 } } }),
                "'servicecheck-00-tcp-1' cannot begin with servicecheck-",
            ),
        ] {
            let error = checked(&config).unwrap_err();
            assert!(error.contains(expected), "{config} gave {error}");
        }
    }
}
