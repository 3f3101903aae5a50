//! Two servers on one host.

use anyhow::{Context as _, Result};
use caddis_testkit::{Host, Machine, Options, Outside, Server, run};
use serde_json::{Value, json};

use crate::{
    leftovers::{ended, traces},
    stand::{APP, Stand},
};

const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";

fn page(address: &str) -> String {
    format!("timeout 5 wget -q -O - http://{address}/")
}

async fn reads(machine: &Machine, address: &str) -> Result<bool> {
    Ok(machine.exec(&["/bin/sh", "-c", &page(address)]).await?.code == 0)
}

async fn clean(server: &Server<'_>) -> Result<caddis_testkit::Output> {
    server.cli(&["host", "clean", "--data-dir", &server.data_directory().to_string_lossy()]).await
}

#[tokio::test]
async fn two_servers_of_one_host_do_not_disturb_each_other() -> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    let arguments = vec!["--pool".to_owned(), "0".to_owned()];
    let mut stand =
        Stand::with(&host, Options { arguments: arguments.clone(), ..Options::default() }).await?;
    let (one, two) =
        (stand.script(PROGRAM, json!({})).await?, stand.script(PROGRAM, json!({})).await?);
    let two_address = two.address().await?;

    // A range that is taken is refused at once, with what to do, and nothing is left of the
    // attempt.
    one.logged("ready").await?;
    two.logged("ready").await?;
    // The VM that becomes a template has a tap of its own, as long as it is there.
    stand.server.templates().await?;
    let alone = traces()?;
    let taken = [&arguments[..], &["--ipv4-pool".to_owned(), "10.201.64.0/18".to_owned()]].concat();
    let insecure_registries = vec![stand.registry.address().to_owned()];
    let options = Options { arguments: taken, second: true, ..Options::default() };
    let error =
        Server::start(&host, options).await.err().context("a pool that is taken")?.to_string();
    // A part of another's range is as good as all of it.
    assert!(error.contains("--ipv4-pool") && error.contains("10.201.64.0/18"), "{error}");
    let changed: Vec<_> = traces()?.symmetric_difference(&alone).cloned().collect();
    assert!(changed.is_empty(), "{changed:#?}");

    let options = Options { arguments, insecure_registries, second: true, ..Options::default() };
    let mut second = Server::start(&host, options).await?;
    second.api().create_app(APP, None).await?;
    let config =
        json!({ "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", PROGRAM] } });
    let foreign = second.api().create_machine(APP, config).await?;
    foreign.logged("ready").await?;
    let ipv4 = async |machine: &Machine| -> Result<String> {
        let machine: Value = machine.get().await?;
        Ok(machine["private_ipv4"].as_str().context("no private_ipv4")?.to_owned())
    };
    let (own, other) = (ipv4(&one).await?, ipv4(&foreign).await?);
    assert!(own.starts_with("10.201.") && other.starts_with("10.202."), "{own} {other}");
    let foreign_address = foreign.address().await?;

    assert!(reads(&one, &format!("[{two_address}]")).await?, "the first's machines meet");
    for address in [&*other, &format!("[{foreign_address}]")] {
        assert!(!reads(&one, address).await?, "{address} is a machine of the other server");
    }
    assert!(!reads(&foreign, &format!("[{two_address}]")).await?);
    for machine in [&one, &foreign] {
        assert!(reads(machine, Outside::NAME).await?, "each has its name server and the outside");
        assert_eq!(
            machine.http_get(80, "/").await?,
            "hello from a machine\n",
            "the host reaches both"
        );
        let address = ipv4(machine).await?;
        let page = run([
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "30",
            &format!("http://{address}/"),
        ])?;
        assert_eq!(page, "hello from a machine\n");
    }

    // A firewall that reloads takes away what both have on the host.
    run(["nft", "flush", "ruleset"])?;
    for machine in [&one, &foreign] {
        while !reads(machine, Outside::NAME).await? {}
    }

    // A start of the one again is nothing to the other, nor is its end.
    second.kill().await?;
    second.launch().await?;
    assert!(reads(&one, &format!("[{two_address}]")).await?);
    assert!(reads(&foreign, Outside::NAME).await?, "a machine that goes on is connected as before");
    ended_with_machines(&mut second).await?;
    let refused = clean(&second).await?;
    assert_ne!(refused.code, Some(0), "its machine runs: {refused:?}");
    assert!(refused.stderr.contains("1 VMs are still running"), "{refused:?}");
    second.launch().await?;
    foreign.destroy().await?;
    ended(&mut second).await?;
    let cleaned = clean(&second).await?;
    assert_eq!(cleaned.code, Some(0), "{cleaned:?}");
    let first_directory = stand.server.data_directory();
    assert!(
        cleaned.stdout.contains(&*first_directory.to_string_lossy()),
        "it says what is left: {cleaned:?}"
    );
    assert!(!cleaned.stdout.contains("Nothing else of caddis"), "{cleaned:?}");
    let changed: Vec<_> = traces()?.symmetric_difference(&alone).cloned().collect();
    assert!(changed.is_empty(), "the host is as it was with the first alone: {changed:#?}");

    assert!(reads(&one, &format!("[{two_address}]")).await?, "the first's machines go on meeting");
    assert!(reads(&one, Outside::NAME).await?);
    for machine in [&one, &two] {
        machine.destroy().await?;
    }
    ended(&mut stand.server).await?;
    let cleaned = clean(&stand.server).await?;
    assert_eq!(cleaned.code, Some(0), "{cleaned:?}");
    let changed: Vec<_> = traces()?.symmetric_difference(&before).cloned().collect();
    assert!(changed.is_empty(), "the host is as it was: {changed:#?}");
    Ok(())
}

async fn ended_with_machines(server: &mut Server<'_>) -> Result<()> {
    assert!(server.terminate().await?.success());
    assert!(!server.vms().is_empty());
    Ok(())
}
