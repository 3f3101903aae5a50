//! Numbers under which workers are told what they are told all of at once.

use caddis_catalog::Push;

use crate::support::{Fixture, over_each_store, worker};

over_each_store!(numbers_for_a_worker_only_rise);

async fn numbers_for_a_worker_only_rise(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let (one, other) = (worker("one"), worker("other"));
    for push in [Push::Policies, Push::Egress] {
        assert_eq!(catalog.push_revision(push, &one).await.unwrap(), 0, "{push:?}");
        for (known, expected) in [(0, 1), (0, 2), (1, 3), (900, 901), (7, 902)] {
            let raised = catalog.raise_push_revision(push, &one, known).await.unwrap();
            assert_eq!(raised, expected);
            assert_eq!(catalog.push_revision(push, &one).await.unwrap(), expected);
        }
        assert_eq!(catalog.push_revision(push, &other).await.unwrap(), 0);
        assert_eq!(catalog.raise_push_revision(push, &other, 0).await.unwrap(), 1);
        let raising = (0..20).map(|_| catalog.raise_push_revision(push, &other, 0));
        let mut raised = futures::future::try_join_all(raising).await.unwrap();
        raised.sort_unstable();
        assert_eq!(raised, (2..22).collect::<Vec<u64>>(), "nobody has the number of another");
    }
}
