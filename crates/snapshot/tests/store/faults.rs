//! Requests to the store fail, one after another: nothing is half there, and trying again succeeds.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use caddis_snapshot::SnapshotError;

use crate::support::*;

/// Objects of which the request with this number meets a fate; tells how many there were.
fn failing(objects: &Hooked, number: usize, fate: Fate) -> (Arc<Hooked>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let hooked = objects.with(move |_| {
        let is_it = counting.fetch_add(1, Ordering::Relaxed) == number;
        if is_it { fate } else { Fate::Done }
    });
    (hooked, count)
}

fn is_store_error(error: &SnapshotError) -> bool {
    matches!(error, SnapshotError::Store(reason)
        if reason.contains("it is made to fail") && reason.contains("organizations/acme"))
}

/// Takes `1`, changes the volume, and takes `2` after it; all in a store that holds what it may.
async fn taken(objects: &Arc<Hooked>) -> Volume {
    let mut volume = Volume::random(1, 6 * CHUNK);
    take(&objects.store(), new(&name("acme", "a", "1"), None), &mut volume).await.unwrap();
    volume.changed = Some(Vec::new());
    volume.write(2 * CHUNK, &random(2, 2 * CHUNK));
    volume
}

#[tokio::test]
async fn a_snapshot_is_taken_again_after_each_failure() {
    for fate in [Fate::Refused, Fate::Unanswered] {
        let (one, two) = (name("acme", "a", "1"), name("acme", "a", "2"));
        let expected = {
            let objects = Hooked::new(|_| Fate::Done);
            let mut volume = taken(&objects).await;
            take(&objects.store(), new(&two, Some(&one)), &mut volume).await.unwrap();
            objects.keys("").await
        };
        let mut number = 0;
        loop {
            let objects = Hooked::new(|_| Fate::Done);
            let volume = taken(&objects).await;
            let (hooked, count) = failing(&objects, number, fate);
            let new = new(&two, Some(&one));
            let result = take(&hooked.store(), new.clone(), &mut volume.clone()).await;
            let was_reached = count.load(Ordering::Relaxed) > number;
            match &result {
                Ok(_) => {}
                Err(error) => {
                    assert!(is_store_error(error), "{error}");
                    let found = objects.store().get(&two).await;
                    // Written, though the answer was lost; or not at all.
                    let is_whole = found.is_ok();
                    assert!(!is_whole || fate == Fate::Unanswered);
                    if is_whole {
                        let read = contents(&objects.store(), &two).await.unwrap();
                        assert!(read == volume.contents);
                    }
                    take(&objects.store(), new, &mut volume.clone()).await.unwrap();
                }
            }
            let store = objects.store();
            assert!(contents(&store, &two).await.unwrap() == volume.contents);
            assert!(contents(&store, &one).await.unwrap() == random(1, 6 * CHUNK));
            // That of an attempt that failed is removed beside it. One that could not be removed
            // would expire.
            while result.is_err() && !objects.keys("claims").await.is_empty() {
                tokio::task::yield_now().await;
            }
            store.sweep().await.unwrap();
            let mut keys = objects.keys("").await;
            keys.retain(|key| !key.contains("claims"));
            assert_eq!(keys, expected, "request {number}");
            if !was_reached {
                assert!(result.is_ok() && number > 10);
                break;
            }
            number += 1;
        }
    }
}

#[tokio::test]
async fn a_sweep_goes_on_after_each_failure() {
    let (one, two) = (name("acme", "a", "1"), name("acme", "a", "2"));
    for number in 0.. {
        let objects = Hooked::new(|_| Fate::Done);
        let mut volume = taken(&objects).await;
        take(&objects.store(), new(&two, Some(&one)), &mut volume).await.unwrap();
        objects.store().delete(&one).await.unwrap();
        let (hooked, count) = failing(&objects, number, Fate::Refused);
        let store = hooked.store();
        let result = store.sweep().await;
        let was_reached = count.load(Ordering::Relaxed) > number;
        if let Err(error) = &result {
            assert!(was_reached && error.to_string().contains("it is made to fail"), "{error}");
        }
        assert!(contents(&objects.store(), &two).await.unwrap() == volume.contents);
        if was_reached {
            store.sweep().await.unwrap();
        }
        assert_eq!(objects.keys("chunks").await.len(), 6, "request {number}");
        assert_eq!(objects.keys("segments").await.len(), 1);
        assert!(contents(&objects.store(), &two).await.unwrap() == volume.contents);
        if !was_reached {
            assert!(result.is_ok() && number > 6);
            break;
        }
    }
}

#[tokio::test]
async fn a_read_that_fails_is_an_error_of_the_store_and_succeeds_later() {
    let one = name("acme", "a", "1");
    let objects = Hooked::new(|_| Fate::Done);
    let volume = Volume::random(1, 6 * CHUNK);
    take(&objects.store(), new(&one, None), &mut volume.clone()).await.unwrap();
    // The manifest, the list of chunks, each chunk.
    for number in 0..8 {
        let (hooked, count) = failing(&objects, number, Fate::Refused);
        let store = hooked.store();
        let reader = store.reader(&one).await;
        assert_eq!(reader.is_err(), number == 0);
        if let Ok(reader) = reader {
            let mut buffer = vec![0; 6 * CHUNK];
            let error = reader.read(0, &mut buffer).await.unwrap_err();
            assert!(is_store_error(&error), "{error}");
            // The same reader, to which nothing stuck.
            reader.read(0, &mut buffer).await.unwrap();
            assert!(buffer == volume.contents);
        }
        assert!(count.load(Ordering::Relaxed) > number);
    }
}

#[tokio::test]
async fn a_check_says_which_step_failed() {
    let objects = Hooked::new(|_| Fate::Done);
    for (number, step) in ["can't write checks/", "can't read checks/", "can't remove checks/"]
        .into_iter()
        .enumerate()
    {
        let (hooked, _) = failing(&objects, number, Fate::Refused);
        let error = hooked.store().check().await.unwrap_err();
        assert!(matches!(error, SnapshotError::Store(_)));
        assert!(error.to_string().contains(step), "{error}");
    }
}
