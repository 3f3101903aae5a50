//! Keyed requests.

use std::time::Duration;

use caddis_catalog::{IdempotencyState, KeyedRequest, REQUEST_LEASE, REQUEST_RETENTION};

use crate::support::{Fixture, answer, over_each_store, request};

over_each_store!(
    a_request_is_new_once_and_in_progress_until_it_is_answered,
    a_key_belongs_to_one_request_of_one_caller,
    a_request_whose_holder_died_is_cut_short_when_its_lease_has_run_out,
    a_request_that_is_renewed_stays_in_progress,
    a_request_that_was_given_up_is_cut_short_at_once_and_for_one,
    a_request_that_was_forgotten_is_new,
    who_has_lost_a_request_changes_nothing_of_it,
    the_first_answer_stays,
    a_key_is_remembered_for_a_day,
);

const MOMENT: Duration = Duration::from_millis(1);

fn cut_short(id: &str) -> IdempotencyState {
    IdempotencyState::Interrupted { id: id.to_owned() }
}

async fn a_request_is_new_once_and_in_progress_until_it_is_answered(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    assert_eq!(catalog.begin_request(request("1")).await.unwrap(), IdempotencyState::New);
    let until_ms = fixture.now() + REQUEST_LEASE;
    for id in ["2", "3"] {
        assert_eq!(
            catalog.begin_request(request(id)).await.unwrap(),
            IdempotencyState::InProgress { until_ms }
        );
    }
    catalog.end_request("1", answer("done")).await.unwrap();
    assert_eq!(
        catalog.begin_request(request("2")).await.unwrap(),
        IdempotencyState::Answered(answer("done"))
    );
}

async fn a_key_belongs_to_one_request_of_one_caller(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    let other = KeyedRequest { fingerprint: [2; 32], ..request("2") };
    assert_eq!(catalog.begin_request(other.clone()).await.unwrap(), IdempotencyState::Another);
    catalog.end_request("1", answer("done")).await.unwrap();
    assert_eq!(catalog.begin_request(other).await.unwrap(), IdempotencyState::Another);
    let of_another = KeyedRequest { caller: "d".to_owned(), ..request("2") };
    assert_eq!(catalog.begin_request(of_another).await.unwrap(), IdempotencyState::New);
    let of_another_key = KeyedRequest { key: "l".to_owned(), ..request("3") };
    assert_eq!(catalog.begin_request(of_another_key).await.unwrap(), IdempotencyState::New);
}

async fn a_request_whose_holder_died_is_cut_short_when_its_lease_has_run_out(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    fixture.pass(REQUEST_LEASE - MOMENT);
    assert!(matches!(
        catalog.begin_request(request("2")).await.unwrap(),
        IdempotencyState::InProgress { .. }
    ));
    fixture.pass(MOMENT);
    assert_eq!(catalog.begin_request(request("3")).await.unwrap(), cut_short("1"));
    // It is the third's now.
    assert!(matches!(
        catalog.begin_request(request("4")).await.unwrap(),
        IdempotencyState::InProgress { .. }
    ));
    assert!(!catalog.renew_request("1", "1").await.unwrap());
    assert!(catalog.renew_request("1", "3").await.unwrap());
}

async fn a_request_that_is_renewed_stays_in_progress(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    for _ in 0..3 {
        fixture.pass(REQUEST_LEASE - MOMENT);
        assert!(catalog.renew_request("1", "1").await.unwrap());
        assert!(matches!(
            catalog.begin_request(request("2")).await.unwrap(),
            IdempotencyState::InProgress { .. }
        ));
    }
    assert!(!catalog.renew_request("never noted", "1").await.unwrap());
    catalog.end_request("1", answer("done")).await.unwrap();
    assert!(!catalog.renew_request("1", "1").await.unwrap(), "there is nothing left to hold");
}

async fn a_request_that_was_given_up_is_cut_short_at_once_and_for_one(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    catalog.give_up_request("1", "1").await.unwrap();
    assert_eq!(catalog.begin_request(request("2")).await.unwrap(), cut_short("1"));
    assert!(matches!(
        catalog.begin_request(request("3")).await.unwrap(),
        IdempotencyState::InProgress { .. }
    ));
    catalog.end_request("1", answer("done")).await.unwrap();
    assert_eq!(
        catalog.begin_request(request("4")).await.unwrap(),
        IdempotencyState::Answered(answer("done"))
    );
}

async fn a_request_that_was_forgotten_is_new(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    catalog.forget_request("1", "1").await.unwrap();
    assert_eq!(catalog.begin_request(request("2")).await.unwrap(), IdempotencyState::New);
}

async fn who_has_lost_a_request_changes_nothing_of_it(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    fixture.pass(REQUEST_LEASE);
    assert_eq!(catalog.begin_request(request("2")).await.unwrap(), cut_short("1"));
    catalog.forget_request("1", "1").await.unwrap();
    catalog.give_up_request("1", "1").await.unwrap();
    assert!(matches!(
        catalog.begin_request(request("3")).await.unwrap(),
        IdempotencyState::InProgress { .. }
    ));
    catalog.end_request("1", answer("done")).await.unwrap();
    catalog.forget_request("1", "2").await.unwrap();
    assert_eq!(
        catalog.begin_request(request("4")).await.unwrap(),
        IdempotencyState::Answered(answer("done"))
    );
}

async fn the_first_answer_stays(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    catalog.end_request("1", answer("first")).await.unwrap();
    catalog.end_request("1", answer("second")).await.unwrap();
    assert_eq!(
        catalog.begin_request(request("2")).await.unwrap(),
        IdempotencyState::Answered(answer("first"))
    );
}

async fn a_key_is_remembered_for_a_day(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.begin_request(request("1")).await.unwrap();
    catalog.end_request("1", answer("done")).await.unwrap();
    fixture.pass(REQUEST_RETENTION);
    assert_eq!(
        catalog.begin_request(request("2")).await.unwrap(),
        IdempotencyState::Answered(answer("done"))
    );
    fixture.pass(MOMENT);
    assert_eq!(catalog.begin_request(request("3")).await.unwrap(), IdempotencyState::New);
}
