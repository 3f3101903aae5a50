//! `volumes`, and machines that have some.

use insta::assert_snapshot;

use crate::stand::Stand;

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
impl Stand {
    /// Makes a volume in the app `shop`; returns its id.
    async fn volume(&self, arguments: &str) -> String {
        let line = format!("volumes create {arguments} -a shop --yes --json");
        self.run(&line).await.ok().json()["id"].as_str().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_volume_is_created_shown_and_listed() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("volumes create data -a shop").await, @"
    exit code 1
    ----- stderr -----
    Warning! Every volume is pinned to a specific physical host. You should create two or more volumes per application to avoid downtime.
    Error: yes flag must be specified when not running interactively
    ");
    let created = stand.run("volumes create data -a shop --size 3gb --yes").await;
    assert_snapshot!(created, @"
    exit code 0
    ----- stdout -----
                      ID: volume-id-0000000001
                    Name: data
                     App: shop
                  Region: local
                    Zone: zone
                 Size GB: 3
               Encrypted: true
             File system: ext4
              Created at: [TIME]
      Snapshot retention: 5
     Scheduled snapshots: true
                   State: created
    ");
    // The second one of a name needs no warning.
    stand.run("volumes create data -a shop --no-encryption --snapshot-retention 9").await.ok();
    let two = stand.run("vol create other -a shop --count 2 --json").await.ok().json();
    assert_eq!(two.as_array().unwrap().len(), 2);
    // There is one host.
    let pair = "vol create pair -a shop --count 2 --require-unique-zone --no-encryption --json";
    let pair = stand.run(pair).await;
    assert_eq!((pair.code, pair.stdout.as_str()), (1, ""));
    assert!(pair.stderr.contains("(require_unique_zone)"), "{pair}");
    assert_eq!(stand.run("vol create pair -a shop --count 0").await.code, 1);
    let listed = stand.run("volumes list -a shop --json").await.ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    let id = two[0]["id"].as_str().unwrap();
    let shown = stand.run(&format!("volume show {id} -a shop --json")).await.ok().json();
    assert_eq!(shown["id"], two[0]["id"]);
    assert_eq!(shown["size_gb"], 1);
    assert_snapshot!(stand.run("volumes show -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: volume ID must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("volumes show vol_1 -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: failed to get volume vol_1: volume not found (Request ID: …)
    ");
    assert_snapshot!(stand.run("volumes show data -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid volume ID, 'data'
    'caddis volumes list -a shop' shows the IDs of volumes.
    ");
}

#[tokio::test]
async fn volumes_are_listed_in_a_table_without_deleted_ones() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    assert_snapshot!(stand.run("volumes list -a shop").await, @"
    exit code 0
    ----- stdout -----
     ID │ STATE │ NAME │ SIZE │ REGION │ ZONE │ ENCRYPTED │ ATTACHED VM │ CREATED AT │ LAST SNAPSHOT
     volume-id-0000000001 │ created │ data │ 1GB │ local │ zone │ true │ │ [AGO] │
    ");
    stand.run(&format!("volumes destroy {id} -a shop --yes")).await.ok();
    assert_snapshot!(stand.run("volumes ls -a shop").await, @"
    exit code 0
    ----- stdout -----
     ID │ STATE │ NAME │ SIZE │ REGION │ ZONE │ ENCRYPTED │ ATTACHED VM │ CREATED AT │ LAST SNAPSHOT
    ");
    assert_snapshot!(stand.run("volumes ls -a shop --all").await, @"
    exit code 0
    ----- stdout -----
     ID │ STATE │ NAME │ SIZE │ REGION │ ZONE │ ENCRYPTED │ ATTACHED VM │ CREATED AT │ LAST SNAPSHOT
     volume-id-0000000001 │ pending_destroy │ data │ 1GB │ local │ zone │ true │ │ [AGO] │
    ");
    assert_eq!(stand.run("volumes ls -a shop --json").await.ok().json(), serde_json::json!([]));
}

#[tokio::test]
async fn a_volume_is_extended_updated_destroyed_and_undeleted() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data --size 2").await;
    assert_snapshot!(stand.run(&format!("volumes extend {id} -a shop")).await, @"
    exit code 1
    ----- stderr -----
    Error: Volume size must be specified
    ");
    let extended = stand.run(&format!("volumes extend {id} -a shop --size +1 --json")).await.ok();
    assert_eq!(
        (&extended.json()["size_gb"], &extended.json()["needs_restart"]),
        (&3.into(), &false.into())
    );
    let extended = stand.run(&format!("volumes extend {id} -a shop -s 7gb --json")).await.ok();
    assert_eq!(extended.json()["size_gb"], 7);
    assert_snapshot!(stand.run(&format!("volumes extend {id} -a shop -s 2")).await, @"
    exit code 1
    ----- stderr -----
    Error: failed to extend volume: invalid size_gb, the volume has 7 GB already, it can only be made larger (Request ID: …)
    ");
    let update = format!("volumes update {id} -a shop --snapshot-retention 14 --json");
    assert_eq!(stand.run(&update).await.ok().json()["snapshot_retention"], 14);
    assert_snapshot!(stand.run(&format!("volumes destroy {id} -a shop")).await, @"
    exit code 1
    ----- stderr -----
    Warning! Individual volumes are pinned to individual hosts. You should have two or more volumes per application. Deleting this volume will leave you with fewer volumes 'data'. Deleting a volume can be taken back for a day only, and its space stays reserved for as long; --purge frees it at once.
    Error: yes flag must be specified when not running interactively
    ");
    let destroyed = stand.run(&format!("volumes destroy {id} -a shop --yes")).await;
    assert_snapshot!(destroyed, @"
    exit code 0
    ----- stdout -----
    Destroyed volume ID: volume-id-0000000001 name: data

    ----- stderr -----
    'caddis volumes undelete volume-id-0000000001 -a shop' brings it back until [TIME]. Until then its space stays reserved, unless it is destroyed with --purge.
    ");
    let back = stand.run(&format!("volumes undelete {id} -a shop --json")).await.ok();
    assert_eq!(back.json()["state"], "created");
    assert_snapshot!(stand.run("volumes destroy -a shop --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: volume ID or app required
    ");
}

#[tokio::test]
async fn volumes_are_purged_and_none_is_gone_where_one_is_mistyped() {
    let stand = Stand::with_app().await;
    let (one, other) = (stand.volume("data").await, stand.volume("data").await);
    for bad in ["vol_1", "bad"] {
        let refused = stand.run(&format!("volumes destroy {one} {bad} -a shop --yes")).await;
        assert!(refused.code == 1 && refused.stderr.contains(bad), "{refused}");
        assert_eq!(refused.stdout, "");
    }
    let deleted = stand.run(&format!("volumes destroy {one} -a shop --yes --json")).await.ok();
    assert_eq!(deleted.json()[0]["state"], "pending_destroy");
    assert_snapshot!(stand.run(&format!("volumes destroy {one} -a shop --purge")).await, @"
    exit code 1
    ----- stderr -----
    Deleting a volume with --purge is not reversible.
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run(&format!("volumes rm {one} {other} -a shop --purge -y")).await, @"
    exit code 0
    ----- stdout -----
    Destroyed volume ID: volume-id-0000000001 name: data
    Destroyed volume ID: volume-id-0000000002 name: data
    ");
    for id in [one, other] {
        let back = stand.run(&format!("volumes undelete {id} -a shop")).await;
        assert!(back.code == 1 && back.stderr.contains(&id), "{back}");
    }
}

#[tokio::test]
async fn what_no_volume_can_have_is_refused_before_any_is_made() {
    let stand = Stand::with_app().await;
    for (arguments, text) in [
        ("--count 101", "invalid count, at most 100: each volume has its whole size reserved"),
        ("--snapshot-retention 0", "invalid snapshot retention, must be between 1 and 60 days"),
    ] {
        let refused = stand.run(&format!("volumes create data -a shop --yes {arguments}")).await;
        assert!(refused.code == 1 && refused.stderr.contains(text), "{refused}");
    }
    let volumes = stand.run("volumes list -a shop --json").await.ok().json();
    assert_eq!(volumes, serde_json::json!([]));
}

#[tokio::test]
async fn a_volume_is_forked() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data --size 2").await;
    assert_snapshot!(stand.run(&format!("volumes fork {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
                      ID: volume-id-0000000002
                    Name: data
                     App: shop
                  Region: local
                    Zone: zone
                 Size GB: 2
               Encrypted: true
             File system: ext4
              Created at: [TIME]
      Snapshot retention: 5
     Scheduled snapshots: true
                   State: created
    ");
    let apart = format!("volumes fork {id} -a shop --require-unique-zone");
    assert_snapshot!(stand.run(&apart).await, @"
    exit code 1
    ----- stderr -----
    Error: a copy of a volume is made on the host of its source, not in a zone of its own
    A volume made from a snapshot ('caddis volumes create --snapshot-id') can be on another host.
    ");
    stand.run(&format!("{apart}=false --wait")).await.ok();
    let fork = stand.run(&format!("volumes fork {id} -a shop --name copy --json")).await.ok();
    assert_eq!((&fork.json()["name"], &fork.json()["size_gb"]), (&"copy".into(), &2.into()));
}

#[tokio::test]
async fn snapshots_are_taken_listed_and_deleted() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    assert_snapshot!(stand.run(&format!("volumes snapshots list {id} -a shop")).await, @"
    exit code 0
    ----- stderr -----
    No snapshots available for volume volume-id-0000000001
    ");
    let taken = stand.run(&format!("volumes snapshots create {id} -a shop --wait")).await;
    assert_snapshot!(taken, @"
    exit code 0
    ----- stdout -----
    Scheduled to snapshot volume volume-id-0000000001
    Snapshot snapshot-id-00000000001 is created
    ");
    let table = stand.run(&format!("vol snaps ls {id} -a shop")).await.ok();
    for part in ["STORED SIZE", "RETENTION DAYS", "created", "1.0 GiB", "\nTotal stored size: "] {
        assert!(table.stdout.contains(part), "{part}: {table}");
    }
    let listed = stand.run(&format!("volumes snapshot list {id} -a shop --json")).await.ok();
    let snapshot = listed.json()[0]["id"].as_str().unwrap().to_owned();
    let line = format!("volumes snapshots create {id} -a shop --json");
    assert_eq!(stand.run(&line).await.ok().json()["volume_size"], 1_u64 << 30);
    let shown = stand.run(&format!("volumes show {id} -a shop")).await.ok();
    assert!(shown.stdout.contains("Last snapshot: "), "{shown}");
    let line = format!("volumes snapshots delete {id} {snapshot} -a shop");
    assert_snapshot!(stand.run(&line).await, @"
    exit code 1
    ----- stderr -----
    Deleting a snapshot is not reversible.
    Error: yes flag must be specified when not running interactively
    ");
    let mistyped = stand.run(&format!("{line} vs_1 --yes")).await;
    assert!(mistyped.code == 1 && !mistyped.stdout.contains("Deleted"), "{mistyped}");
    assert_snapshot!(stand.run(&format!("{line} --yes")).await, @"
    exit code 0
    ----- stdout -----
    Deleted snapshot snapshot-id-00000000001 of volume volume-id-0000000001
    ");
    assert_snapshot!(stand.run(&format!("{line} --yes")).await, @"
    exit code 1
    ----- stderr -----
    Error: snapshot-id-00000000001: could not get snapshot: snapshot not found (Request ID: …)
    ");
}

#[tokio::test]
async fn a_snapshot_that_is_only_asked_for_is_told_where_to_be_looked_for() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    let asked = stand.run(&format!("volumes snapshots create {id} -a shop")).await.ok();
    assert_eq!(asked.stdout, format!("Scheduled to snapshot volume {id}\n"));
    assert!(asked.stderr.contains(&format!("'caddis volumes snapshots list {id} -a shop'")));
    // Of a volume that is not there.
    assert_snapshot!(stand.run("volumes snapshots create vol_1 -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: failed to snapshot volume vol_1: volume not found (Request ID: …)
    ");
    assert_eq!(stand.run("volumes snapshots create -a shop --wait-timeout 5").await.code, 1);
}

#[tokio::test]
async fn a_volume_is_created_from_a_snapshot() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    let taken = format!("volumes snapshots create {id} -a shop --wait --json");
    let snapshot = stand.run(&taken).await.ok().json()["id"].as_str().unwrap().to_owned();
    let create = format!("volumes create data -a shop --snapshot-id {snapshot} --json");
    let made = stand.run(&create).await.ok().json();
    assert_eq!((&made["size_gb"], &made["name"]), (&1.into(), &"data".into()));
    assert_eq!(stand.run(&format!("{create} --size 2")).await.ok().json()["size_gb"], 2);
    let filled = stand.run(&format!("{create} --wait")).await.ok().json();
    assert_eq!(filled["state"], "created");
    let plain = stand.run(&format!("{create} --no-encryption")).await;
    let text = "invalid encrypted, the volume of the snapshot is encrypted";
    assert!(plain.code == 1 && plain.stderr.contains(text), "{plain}");
    let unknown = stand.run("volumes create data -a shop --snapshot-id vs_1 --json").await;
    assert!(unknown.stderr.contains("the organization has no snapshot 'vs_1'"), "{unknown}");
}

#[tokio::test]
async fn a_clone_has_a_volume_from_a_snapshot() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    let machine = stand.machine_with(&format!("web -v {id}:/data")).await;
    let line = format!("machine clone {machine} -a shop --from-snapshot last");
    let empty = stand.run(&line).await.ok();
    let text = format!("No snapshot for source volume {id}, the new volume will start empty");
    assert!(empty.stdout.contains(&text), "{empty}");
    let taken = format!("volumes snapshots create {id} -a shop --wait --json");
    let snapshot = stand.run(&taken).await.ok().json()["id"].as_str().unwrap().to_owned();
    let cloned = stand.run(&line).await.ok();
    let text = format!("Creating new volume from snapshot {snapshot} of {id}");
    assert!(cloned.stdout.contains(&text), "{cloned}");
    let by_id = format!("machine clone {machine} -a shop --from-snapshot {snapshot}");
    let by_id = stand.run(&by_id).await.ok();
    let text = format!("Creating new volume from snapshot: {snapshot}");
    assert!(by_id.stdout.contains(&text), "{by_id}");
    assert_eq!(stand.run(&format!("{line} --attach-volume {id}")).await.code, 1);
}

#[tokio::test]
async fn the_path_of_one_of_two_volumes_is_not_guessed() {
    let stand = Stand::with_app().await;
    let (one, other) = (stand.volume("data").await, stand.volume("log").await);
    let machine = stand.machine_with(&format!("web -v {one}:/data -v {other}:/log")).await;
    let refused =
        stand.run(&format!("machine update {machine} -a shop --mount-point /x --yes")).await;
    assert!(refused.stderr.contains("with more than 1 volume: set the paths"), "{refused}");
    let both = format!("machine clone {machine} -a shop --from-snapshot vs_1");
    let refused = stand.run(&both).await;
    assert!(refused.stderr.contains("for Machines with more than 1 volume"), "{refused}");
}

#[tokio::test]
async fn a_volume_that_is_mounted_by_a_new_name_is_made() {
    let stand = Stand::with_app().await;
    let run = stand.run("machine run web -a shop --detach -v data:/data").await.ok();
    let id = stand.run("volumes list -a shop --json").await.ok().json()[0]["id"].clone();
    let (id, made) = (id.as_str().unwrap(), "(data, 1 GB, region local), since there was none");
    assert!(run.stderr.contains(&format!("Created volume {id} {made}")), "{run}");
    let listed = stand.run("machine list -a shop --json").await.ok().json();
    assert_eq!(listed[0]["config"]["mounts"][0]["volume"], *id);

    // There is one, which somebody has.
    let taken = stand.run("machine run web -a shop --detach -v data:/data").await;
    assert!(taken.stderr.contains("no unattached volume 'data' in region local"), "{taken}");
    let elsewhere = stand.run("machine run web -a shop --region xyz -v data:/data").await;
    let text = "could not create volume 'data', since there is none in region xyz: could not find \
                a candidate host: unknown region 'xyz'";
    assert!(elsewhere.stderr.contains(text), "{elsewhere}");
    let volumes = stand.run("volumes list -a shop --json").await.ok().json();
    assert_eq!(volumes.as_array().unwrap().len(), 1);

    // What can be checked is checked before.
    stand.machine("taken").await;
    for (arguments, text) in [
        ("web -v log:rel", "could not launch machine: invalid config.mounts[0].path, must be an"),
        ("web -v log:/a -v log:/a", "invalid config.mounts[1].path, it is the path of another"),
        ("web -v log:/log --name taken", "already exists with name \"taken\"\nThe name is already"),
    ] {
        let refused = stand.run(&format!("machine run {arguments} -a shop --detach")).await;
        assert!(refused.code == 1 && refused.stderr.contains(text), "{refused}");
        assert!(!refused.stderr.contains("Created volume"), "{refused}");
    }
    // A machine that could not be made leaves none.
    let bad = stand.run("machine run missing -a shop --detach -v log:/log").await;
    assert!(bad.code == 1 && bad.stderr.contains("Created volume"), "{bad}");
    assert!(bad.stderr.contains("Removed volume "), "{bad}");
    let volumes = stand.run("volumes list -a shop --json").await.ok().json();
    assert_eq!(volumes.as_array().unwrap().len(), 1);
    let again = stand.run("machine run web -a shop --detach -v log:/log").await.ok();
    assert!(again.stderr.contains("Created volume"), "{again}");
}

#[tokio::test]
async fn a_machine_is_run_with_volumes_by_id_and_by_name() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data").await;
    stand.volume("data").await;
    let machine = stand.machine_with(&format!("web -v {id}:/data:ignored=1")).await;
    let listed = stand.run("machine list -a shop --json").await.ok().json();
    assert_eq!(listed[0]["config"]["mounts"][0]["volume"], *id);
    let table = stand.run("machine list -a shop").await.ok();
    assert!(table.stdout.contains(&id), "{table}");
    let status = stand.run(&format!("machine status {machine} -a shop")).await.ok();
    assert!(status.stdout.contains(&format!("│ {id}")), "{status}");
    stand.machine_with("web --volume data:/data").await;
    assert_snapshot!(stand.run("machine run web -a shop -v data:/data").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'web' remotely...
    Error: could not launch machine: failed_precondition: no unattached volume 'data' in region local, create one first (Request ID: …)
    ");
    assert_snapshot!(stand.run("machine run web -a shop -v data").await, @"
    exit code 1
    ----- stderr -----
    Error: Can't infer volume and mount path from 'data'
    ");
    let destroy = stand.run(&format!("volumes destroy {id} -a shop --yes")).await;
    assert_snapshot!(destroy, @"
    exit code 1
    ----- stderr -----
    Error: failed to destroy volume: failed_precondition: volume volume-id-0000000001 is in use by machine machine-id-001: destroy the machine first (Request ID: …)
    ");
    let extended = stand.run(&format!("volumes extend {id} -a shop -s 4")).await;
    assert_snapshot!(extended, @"
    exit code 0
    ----- stdout -----
                      ID: volume-id-0000000001
                    Name: data
                     App: shop
                  Region: local
                    Zone: zone
                 Size GB: 4
               Encrypted: true
             File system: ext4
              Created at: [TIME]
      Snapshot retention: 5
     Scheduled snapshots: true
                   State: created
                    Used: 410 MiB of 4.0 GiB
             Attached VM: machine-id-001

    ----- stderr -----
    Your Machine got its volume size extended without needing a restart
    ");
    let moved = format!("machine update {machine} -a shop --mount-point /other --yes");
    stand.run(&moved).await.ok();
    let config = stand.run(&format!("machine status {machine} -a shop -d")).await.ok().json();
    assert_eq!(config["mounts"][0]["path"], "/other");
}

#[tokio::test]
async fn a_clone_has_a_volume_of_its_own() {
    let stand = Stand::with_app().await;
    let id = stand.volume("data --size 2").await;
    let machine = stand.machine_with(&format!("web -v {id}:/data")).await;
    assert_snapshot!(stand.run(&format!("machine clone {machine} -a shop --name second")).await, @"
    exit code 0
    ----- stdout -----
    Cloning Machine machine-id-001 into region local
    Volume 'data' will start empty
    Provisioning a new Machine with image web...
      Machine machine-id-002 has been created...
      Waiting for Machine machine-id-002 to start...
    Machine has been successfully cloned!
      Name: second
      Private IP: [IPV6]

    ----- stderr -----
    No health checks found
    ");
    let other = stand.volume("other").await;
    let clone = format!("machine clone {machine} -a shop --attach-volume");
    assert_snapshot!(stand.run(&format!("{clone} {other}:/srv --name third")).await, @"
    exit code 0
    ----- stdout -----
    Cloning Machine machine-id-001 into region local
    Attaching existing volume volume-id-0000000002
    Provisioning a new Machine with image web...
      Machine machine-id-003 has been created...
      Waiting for Machine machine-id-003 to start...
    Machine has been successfully cloned!
      Name: third
      Private IP: [IPV6]

    ----- stderr -----
    Info: --attach-volume is overriding previous mount point from `/data` to `/srv`.
    No health checks found
    ");
    for (volume, text) in [
        (other.as_str(), "is already attached to a machine"),
        ("vol_1", "could not get existing volume: volume not found"),
    ] {
        let refused = stand.run(&format!("{clone} {volume}")).await;
        assert!(refused.code == 1 && refused.stderr.contains(text), "{refused}");
    }
    let free = stand.volume("free").await;
    let elsewhere = stand.run(&format!("{clone} {free} --region far")).await;
    let text = "specified region far but volume is in region local, use the same region as the \
                volume";
    assert!(elsewhere.stderr.contains(text), "{elsewhere}");
    let bare = stand.machine("bare").await;
    let nowhere = stand.run(&format!("machine clone {bare} -a shop --attach-volume {free}")).await;
    assert!(nowhere.stderr.contains("Please specify a mount path on"), "{nowhere}");
    let last = stand.run(&format!("machine clone {machine} -a shop --from-snapshot last")).await;
    assert!(last.ok().stdout.contains("No snapshot for source volume"));
    let snapshot =
        stand.run(&format!("machine clone {machine} -a shop --from-snapshot vs_1")).await;
    assert!(snapshot.stderr.contains("the organization has no snapshot 'vs_1'"), "{snapshot}");
    let listed = stand.run("volumes list -a shop --json").await.ok().json();
    let attached =
        listed.as_array().unwrap().iter().filter(|row| !row["attached_machine_id"].is_null());
    assert_eq!(attached.count(), 4);
}
