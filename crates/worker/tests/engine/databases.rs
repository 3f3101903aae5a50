//! What an earlier or broken server left of the database.

use std::fs;

use caddis_api::MachineState;
use caddis_bus::message::{Action, WorkerReply, WorkerRequest};
use serde_json::json;

use crate::support::Fixture;

/// Takes out what the first release did not have: tables, and fields of the records.
const FIRST_RELEASE: &str = "
    DROP TABLE versions;
    DROP TABLE requests;
    DROP TABLE volumes;
    DROP TABLE snapshots;
    UPDATE machines SET record = json_remove(record, '$.restarts', '$.rested_at', '$.start_kind', \
                             '$.replaced');
    PRAGMA user_version = 1;";

#[tokio::test]
async fn the_database_of_an_older_server_is_taken_up_with_all_that_is_in_it() {
    let mut fixture = Fixture::new().await;
    let running = fixture.started().await;
    let resting = fixture.create_resting(json!({})).await;
    let launches = fixture.host.launches();
    fixture.end().await;
    rusqlite::Connection::open(fixture.database()).unwrap().execute_batch(FIRST_RELEASE).unwrap();

    fixture.start().await;
    fixture.until(&running, MachineState::Started).await;
    fixture.until(&resting, MachineState::Created).await;
    assert_eq!(fixture.host.launches(), launches, "its VM went on");
    let versions = WorkerRequest::Versions { machine: running.clone() };
    assert!(matches!(
        fixture.ask(versions).await,
        Ok(WorkerReply::Versions { versions }) if versions.len() == 1
    ));
    fixture.act(&running, Action::Stop { signal: None, timeout: None }).await.unwrap();
    fixture.until(&running, MachineState::Stopped).await;
    fixture.act(&resting, Action::Start).await.unwrap();
    fixture.until(&resting, MachineState::Started).await;
}

#[tokio::test]
async fn a_database_that_is_damaged_or_of_a_newer_server_is_refused_and_left_alone() {
    let mut fixture = Fixture::new().await;
    fixture.started().await;
    // So that all of it is in the one file.
    fixture.kill().await;
    let whole = fs::read(fixture.database()).unwrap();

    let mut damaged = whole.clone();
    damaged[4096..8192].fill(0x5a);
    for content in [damaged, b"no database at all, but long enough to be one".repeat(100)] {
        fs::write(fixture.database(), &content).unwrap();
        let error = fixture.try_start().await.unwrap_err().to_string();
        assert!(error.contains("worker.db"), "{error}");
        assert_eq!(fs::read(fixture.database()).unwrap(), content, "{error}");
    }

    fs::write(fixture.database(), &whole).unwrap();
    rusqlite::Connection::open(fixture.database())
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = fixture.try_start().await.unwrap_err().to_string();
    assert!(error.contains("run the newer version again"), "{error}");

    fs::write(fixture.database(), &whole).unwrap();
    fixture.start().await;
}
