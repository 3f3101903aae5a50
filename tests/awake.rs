//! Programs that keep their machine awake by the socket in the guest.

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{Exec, Host, Machine, images};
use serde_json::{Value, json};

use crate::stand::Stand;

/// A client in Perl, which Debian always has. Arguments: method and target.
const CLIENT: &str = "use IO::Socket::UNIX; \
    my $api = IO::Socket::UNIX->new('/.fly/api') or die \"no socket: $!\"; \
    print $api \"$ARGV[0] $ARGV[1] HTTP/1.1\\r\\nHost: flaps\\r\\n\\r\\n\"; \
    $api->flush; local $/; print <$api>;";

/// Status and body of the answer to a request from inside.
async fn ask(machine: &Machine, method: &str, target: &str) -> Result<(u16, Value)> {
    let Exec { code, stdout, stderr } =
        machine.exec(&["perl", "-e", CLIENT, method, target]).await?;
    ensure!(code == 0, "{code}: {stderr}");
    let (head, body) = stdout.split_once("\r\n\r\n").with_context(|| stdout.clone())?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, serde_json::from_str(body)?))
}

#[tokio::test]
async fn a_program_holds_its_machine_by_the_socket_whatever_user_it_runs_as() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:nginx")?;
    let init = json!({ "exec": ["sleep", "1000000"] });
    let machine = stand.machine(json!({ "image": image, "init": init })).await?;
    machine.wait("started").await?;

    let (status, held) = ask(&machine, "PUT", "/hold?ttl=300").await?;
    ensure!(status == 200, "{status} {held}");
    assert_eq!(machine.get().await?["hold"]["until"], held["until"]);
    let nobody = ["runuser", "-u", "nobody", "--", "perl", "-e", CLIENT, "PUT", "/hold?ttl=60"];
    let nobody = machine.exec(&nobody).await?;
    ensure!(nobody.stdout.contains("200 OK"), "{} {}", nobody.stdout, nobody.stderr);

    for (method, target, expected) in [
        ("GET", "/v1/apps", 404),
        ("POST", "/hold?ttl=1", 405),
        ("PUT", "/hold?ttl=soon", 400),
        ("PUT", "/hold?ttl=1000000", 400),
    ] {
        let (status, body) = ask(&machine, method, target).await?;
        ensure!(status == expected && body["error"].is_string(), "{target}: {status} {body}");
    }

    // Its VM goes on, and so does the hold.
    assert!(stand.server.terminate().await?.success());
    stand.server.launch().await?;
    ensure!(machine.get().await?["hold"]["until"].is_string(), "the hold is kept");
    assert_eq!(ask(&machine, "DELETE", "/hold").await?, (200, json!({ "ok": true })));
    assert_eq!(machine.get().await?["hold"], Value::Null);

    // The socket is there after a resume, too.
    machine.post("/suspend", Value::Null).await?.ok()?;
    machine.wait("suspended").await?;
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(ask(&machine, "PUT", "/hold?ttl=300").await?.0, 200);
    machine.destroy().await
}
