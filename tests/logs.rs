//! `caddis logs` of a real VM.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use caddis_testkit::{DEADLINE, Host};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};

use crate::stand::{APP, Stand, rounds};

/// A program that writes a numbered line ten times a second.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo line $i; usleep 100000; done";

/// `caddis logs` while it runs.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<u64>,
}

impl Follower {
    fn begin(stand: &Stand<'_>, arguments: &[&str]) -> Result<Self> {
        let mut child = stand.server.begin_cli(&[&["logs", "-a", APP][..], arguments].concat())?;
        let lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
        Ok(Self { child, lines, seen: Vec::new() })
    }

    /// Reads on until it has given the line of this number.
    async fn until(&mut self, number: u64) -> Result<()> {
        let read = async {
            while self.seen.last().is_none_or(|last| *last < number) {
                let line = self.lines.next_line().await?.context("the command ended")?;
                // Lines of the program, not those about the machine.
                let program =
                    line.split_once("[info]line ").filter(|(head, _)| head.contains(" app["));
                self.seen.extend(program.and_then(|(_, number)| number.parse::<u64>().ok()));
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(DEADLINE, read).await;
        outcome
            .with_context(|| format!("line {number} does not come after {:?}", self.seen.last()))?
    }

    fn last(&self) -> u64 {
        self.seen.last().copied().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_follower_gets_every_line_once_however_often_the_server_is_killed() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let machine = stand.script(COUNTER, json!({})).await?;
    let mut all = Follower::begin(&stand, &[])?;
    let mut one = Follower::begin(&stand, &["-m", machine.id()])?;
    all.until(3).await?;
    one.until(3).await?;
    for round in 0..rounds(3, 30) {
        if round % 2 == 0 {
            stand.server.kill().await?;
        } else {
            assert!(stand.server.terminate().await?.success());
        }
        stand.server.launch().await?;
        let further = all.last() + 5;
        all.until(further).await?;
        one.until(further).await?;
    }
    for follower in [&all, &one] {
        assert_eq!(
            follower.seen,
            (1..=follower.last()).collect::<Vec<_>>(),
            "no line is lost, none comes twice"
        );
    }
    assert!(all.child.try_wait()?.is_none(), "it goes on");
    machine.stop().await?;
    machine.wait("stopped").await
}

#[tokio::test]
async fn what_there_is_can_be_had_by_time_and_as_json_and_ends_at_once() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let server = &stand.server;
    let none = server.cli(&["logs", "-a", APP, "--no-tail"]).await?;
    assert_eq!((none.code, none.stdout.as_str(), none.stderr.as_str()), (Some(0), "", ""));

    let machine = stand.script("seq 1 250; sleep 3; echo late; exec sleep 1000", json!({})).await?;
    machine.logged("late").await?;
    let all = server.cli(&["logs", "-a", APP, "-n", "--since", "1h", "--json"]).await?;
    assert_eq!(all.code, Some(0), "{all:?}");
    let entries: Vec<Value> =
        serde_json::Deserializer::from_str(&all.stdout).into_iter().collect::<Result<_, _>>()?;
    let program: Vec<_> =
        entries.iter().filter(|entry| entry["meta"]["event"]["provider"] == "app").collect();
    let messages: Vec<_> = program.iter().filter_map(|entry| entry["message"].as_str()).collect();
    let expected: Vec<_> = (1..=250).map(|n| n.to_string()).chain(["late".to_owned()]).collect();
    assert_eq!(messages, expected, "all of it, over several pages");
    assert!(all.stdout.starts_with("{\n    \"timestamp\": "), "{}", all.stdout);

    let last = program.last().and_then(|entry| entry["timestamp"].as_str()).context("a time")?;
    let since = server.cli(&["logs", "-a", APP, "-n", "--since", last]).await?;
    let lines: BTreeSet<_> = since.stdout.lines().filter(|line| line.contains(" app[")).collect();
    assert!(lines.len() == 1 && since.stdout.contains("[info]late"), "{since:?}");
    // A time that is over ends the command without --no-tail.
    let first = program[249]["timestamp"].as_str().context("a time")?;
    let arguments = ["logs", "-a", APP, "--until", first];
    let until = tokio::time::timeout(Duration::from_secs(20), server.cli(&arguments));
    let until = until.await.context("it does not end")??;
    assert!(
        until.stdout.contains("[info]250\n") && !until.stdout.contains("[info]late"),
        "{until:?}"
    );

    let unknown = server.cli(&["logs", "-a", APP, "-m", "00000000000000"]).await?;
    assert_eq!(unknown.code, Some(1));
    let expected = format!("Error: machine ID 00000000000000 was not found in app '{APP}'\n");
    assert_eq!(unknown.stderr, expected);
    Ok(())
}
