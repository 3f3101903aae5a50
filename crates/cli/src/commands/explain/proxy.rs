//! Codes of the proxy, which clients of apps and logs of machines are told.

use super::{Meaning, Status};

const WAIT: &str = "Wait, or see why with 'caddis machine status' and 'caddis logs'.";
const LISTEN: &str = "See that the program listens on 0.0.0.0 at the service's internal_port; \
                      'caddis logs' shows what it says.";
const LOOK: &str = "'caddis logs' and the machine's events say what went wrong; start it yourself \
                    with 'caddis machine start'.";

/// Code, HTTP status if there is an answer, whether the same request may succeed later, meaning,
/// and what to do.
type Code = (&'static str, Option<u16>, bool, &'static str, &'static str);

const CODES: [Code; 24] = [
    (
        "PP01",
        Some(500),
        false,
        "Error of the proxy itself, or a port that it can't listen on.",
        "The server's log has the cause; 'caddis platform status' shows ports that are taken.",
    ),
    (
        "PU01",
        Some(502),
        false,
        "The machine does not speak HTTP/2 as its service says.",
        "Remove h2_backend from the port, or have the program accept HTTP/2 without TLS.",
    ),
    ("PU02", Some(502), true, "The machine closed the connection before its answer.", LISTEN),
    ("PC01", Some(502), true, "The machine refused the connection to its port.", LISTEN),
    ("PC03", Some(502), true, "The machine reset the connection.", LISTEN),
    (
        "PC04",
        Some(408),
        true,
        "The client took its response, or sent the body of its request, too slowly.",
        "Have the client read and send faster: 300 KiB in 5 minutes are enough.",
    ),
    ("PC05", Some(504), true, "The machine did not accept the connection in time.", LISTEN),
    ("PC06", Some(502), true, "Speaking with the machine failed.", LISTEN),
    ("PT01", None, true, "Too many TLS handshakes from one range of addresses.", WAIT),
    ("PT02", None, true, "Too many TLS handshakes for one name.", WAIT),
    (
        "PT04",
        None,
        false,
        "The TLS handshake failed.",
        "Use TLS 1.2 or 1.3, and a protocol that the port's alpn allows.",
    ),
    (
        "PT05",
        None,
        false,
        "There is no app of the name that the client asked for by SNI.",
        "Use the app's host name: 'caddis status' shows it.",
    ),
    ("PT08", None, true, "The TLS handshake took too long.", WAIT),
    (
        "PM01",
        Some(503),
        true,
        "The host refused to start the machine.",
        "See whether it is drained or its disk is full: 'caddis platform status'.",
    ),
    ("PM02", Some(503), true, "Starting the machine failed.", LOOK),
    (
        "PM03",
        Some(504),
        true,
        "The machine did not start, its port did not open, or its checks did not pass in time.",
        LISTEN,
    ),
    ("PM08", Some(503), true, "The machine ended while it started, or can't be started.", LOOK),
    (
        "PM09",
        Some(503),
        true,
        "The machine does not exist any more.",
        "Ask again: another machine of the app is used.",
    ),
    ("PM10", Some(503), true, "The machine's host can't be reached.", WAIT),
    (
        "PR01",
        Some(503),
        true,
        "No machine takes traffic at this port: all are stopped without autostart, cordoned, or \
         their checks fail.",
        "See 'caddis machine list' and 'caddis checks list'.",
    ),
    (
        "PR02",
        Some(404),
        false,
        "No app of this host name has services, or the machine asked for is not there.",
        "'caddis status' shows the app's host name; 'caddis machine run -p' adds a service.",
    ),
    ("PR03", Some(503), true, "No machine could take the request after several attempts.", LISTEN),
    (
        "PR04",
        Some(503),
        true,
        "All machines stayed at their hard_limit.",
        "Add machines with 'caddis machine clone', or raise concurrency.hard_limit.",
    ),
    ("PR06", Some(503), true, "Too many requests wait for machines of the app already.", WAIT),
];

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Meaning> {
    CODES.into_iter().map(|(code, status, is_retryable, means, remedy)| Meaning {
        code: code.to_owned(),
        status: status.map_or(Status::NoAnswer, |status| Status::Http(status, is_retryable)),
        means,
        remedy,
    })
}
