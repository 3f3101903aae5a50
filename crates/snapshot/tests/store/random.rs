//! Any history of writes, snapshots, deletes and sweeps: each snapshot reads as it was taken.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::support::*;

/// Chunks of the largest volume.
const LARGEST: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    /// Offset and length, in parts of the volume, and what: 0 for zeroes.
    Write(usize, usize, u8),
    /// Whether the source knows what changed.
    Take(bool),
    /// Of the snapshots that there are.
    Delete(usize),
    Sweep,
    Grow(usize),
    /// A chunk disappears: one of those in the store.
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<usize>(), 1..3 * CHUNK, 0..4_u8).prop_map(|(at, n, b)| Step::Write(at, n, b)),
        4 => any::<bool>().prop_map(Step::Take),
        1 => any::<usize>().prop_map(Step::Delete),
        1 => Just(Step::Sweep),
        1 => (1..2 * CHUNK).prop_map(Step::Grow),
        1 => any::<usize>().prop_map(Step::Lose),
    ]
}

async fn follow(length: usize, steps: Vec<Step>) {
    let objects = Hooked::new(|_| Fate::Done);
    let store = objects.store();
    let mut volume = Volume::new(vec![0; length]);
    let mut expected: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let mut taken = 0_usize;
    for step in steps {
        match step {
            Step::Write(at, count, byte) => {
                let at = at % volume.contents.len();
                let count = count.min(volume.contents.len() - at);
                volume.write(at, &vec![byte; count]);
            }
            Step::Take(knows) => {
                let id = |index: usize| name("acme", "a", &index.to_string());
                let previous = taken.checked_sub(1).map(id);
                let mut source = volume.clone();
                if !knows || !expected.contains_key(&taken.wrapping_sub(1)) {
                    source.changed = None;
                }
                let new = new(&id(taken), previous.as_ref());
                take(&store, new, &mut source).await.unwrap();
                expected.insert(taken, volume.contents.clone());
                taken += 1;
                volume.changed = Some(Vec::new());
            }
            Step::Delete(which) => {
                let ids: Vec<_> = expected.keys().copied().collect();
                if let Some(index) = ids.get(which % ids.len().max(1)) {
                    store.delete(&name("acme", "a", &index.to_string())).await.unwrap();
                    expected.remove(index);
                }
            }
            Step::Sweep => {
                store.sweep().await.unwrap();
            }
            Step::Grow(count) => {
                let from = volume.contents.len();
                let to = (from + count).min(LARGEST * CHUNK).max(from);
                volume.contents.resize(to, 0);
            }
            Step::Lose(which) => {
                use object_store::ObjectStoreExt as _;
                let keys = objects.keys("/chunks/").await;
                if let Some(key) = keys.get(which % keys.len().max(1)) {
                    objects.objects.delete(&key.as_str().into()).await.unwrap();
                }
                // The older ones are lost; the next one has to be whole.
                for index in std::mem::take(&mut expected).into_keys() {
                    if index + 1 < taken {
                        store.delete(&name("acme", "a", &index.to_string())).await.unwrap();
                    }
                }
                if let Some(last) = taken.checked_sub(1) {
                    let last = name("acme", "a", &last.to_string());
                    let new = new(&name("acme", "a", "again"), Some(&last));
                    let mut source = volume.clone();
                    take(&store, new, &mut source).await.unwrap();
                    let again = name("acme", "a", "again");
                    assert!(contents(&store, &again).await.unwrap() == volume.contents);
                    store.delete(&again).await.unwrap();
                    store.delete(&last).await.unwrap();
                }
            }
        }
        for (index, contents_then) in &expected {
            let found = contents(&store, &name("acme", "a", &index.to_string())).await.unwrap();
            assert!(found == *contents_then, "snapshot {index}");
        }
    }
    // With all snapshots gone all is gone.
    for index in expected.into_keys() {
        store.delete(&name("acme", "a", &index.to_string())).await.unwrap();
    }
    store.sweep().await.unwrap();
    assert_eq!(objects.keys("").await, Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn each_snapshot_reads_as_it_was_taken(
        length in 1..8 * CHUNK,
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follow(length, steps));
    }
}
