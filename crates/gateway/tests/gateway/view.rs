//! The view finds its way back after losses.

use caddis_api::MachineState;
use serde_json::json;

use crate::support::{Fixture, TIMEOUT};

#[tokio::test]
async fn a_lost_change_is_noticed_at_the_next_one() {
    let fixture = Fixture::new().await;
    let first = fixture.started().await;
    let second = fixture.machine("a", "other").await;
    let third = fixture.machine("a", "third").await;
    fixture.worker.state().mute = true;
    fixture.worker.turn(&first, MachineState::Stopped, "exit").await;
    // Gone without a word, as after its retention.
    fixture.worker.state().machines.remove(&third);
    fixture.worker.state().mute = false;
    let stale = fixture.call(&format!("GET /v1/apps/a/machines/{first}")).await.ok();
    assert_eq!(stale["state"], "started", "nothing told it yet");
    fixture.worker.turn(&second, MachineState::Started, "start").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{first}/wait?state=stopped")).await.ok();
    // The wait may have ended before the listing did.
    let listed = async {
        while fixture.call(&format!("GET /v1/apps/a/machines/{third}")).await.status != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, listed).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_began_anew_is_listed() {
    let fixture = Fixture::new().await;
    let first = fixture.started().await;
    let second = fixture.machine("a", "other").await;
    {
        let mut state = fixture.worker.state();
        state.incarnation = "second".to_owned();
        state.sequence = 0;
        state.mute = true;
    }
    fixture.worker.turn(&first, MachineState::Stopped, "exit").await;
    {
        let mut state = fixture.worker.state();
        state.mute = false;
        state.sequence = 0;
    }
    fixture.worker.turn(&second, MachineState::Started, "start").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{first}/wait?state=stopped")).await.ok();
}

#[tokio::test]
async fn an_older_record_never_replaces_a_newer_one() {
    use caddis_bus::{
        Bus as _,
        message::{self, DELTAS, Delta},
    };
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let old = fixture.worker.state().machines[&id].clone();
    fixture.worker.turn(&id, MachineState::Stopped, "exit").await;
    let sequence = fixture.worker.state().sequence;
    let incarnation = fixture.worker.state().incarnation.clone();
    let late = Delta {
        worker: fixture.worker.id.clone(),
        sequence: sequence - 1,
        incarnation,
        record: old,
    };
    fixture.worker.bus.publish(DELTAS, message::encode(&late)).await.unwrap();
    let other = fixture.machine("a", "other").await;
    // Deltas come in order: when this one is in, the late one was.
    fixture.worker.turn(&other, MachineState::Started, "start").await;
    fixture.call(&format!("GET /v1/apps/a/machines/{other}/wait")).await.ok();
    assert_eq!(
        fixture.call(&format!("GET /v1/apps/a/machines/{id}")).await.ok()["state"],
        "stopped"
    );
}

#[tokio::test]
async fn machines_that_were_there_before_are_known_at_the_first_request() {
    let fixture = Fixture::new().await;
    fixture.app("a").await;
    // More than one page of a listing.
    let id = fixture.machine("a", "m").await;
    let template = fixture.worker.state().machines[&id].clone();
    for number in 0..1100 {
        let mut record = template.clone();
        record.machine.id = caddis_api::MachineId::from_trusted(format!("{number:014x}"));
        fixture.worker.state().machines.insert(record.machine.id.clone(), record);
    }
    let gateway = fixture.restarted().await;
    let again = Fixture { router: gateway.router(), ..fixture };
    let list = again.call("GET /v1/apps/a/machines").await.ok();
    assert_eq!(list.as_array().unwrap().len(), 1101);
    assert_eq!(again.call("GET /v1/apps/a").await.ok()["machine_count"], json!(1101));
}
