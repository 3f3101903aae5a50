//! What programs want of the kernel beyond what every guest has: the distribution's kernel has it
//! in modules, which are loaded when they are asked for.

use anyhow::Result;
use caddis_testkit::{Host, images};
use serde_json::json;

use crate::stand::Stand;

/// Docker begins when it is told to, so that what is looked at before was not its doing.
const DOCKER: &str = r#"
until [ -e /tmp/go ]; do sleep 0.2; done
dockerd >/tmp/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
    kill -0 $! || { cat /tmp/dockerd.log; exit 1; }
    sleep 0.5
done
echo docker is up
mkdir -p /tmp/tree/bin && cp /bin/busybox /tmp/tree/bin/busybox
tar -C /tmp/tree -c . | docker import - box
docker run --rm box /bin/busybox sh -c \
    'echo from a container with $(/bin/busybox ip -o -4 address show eth0 |
     /bin/busybox grep -c "inet 172") address' \
    || cat /tmp/dockerd.log
echo docker is done
exec sleep 1000000
"#;

const RULES: &str = "table inet t {
    chain input { type filter hook input priority 0; ct state established,related accept; }
    chain after { type nat hook postrouting priority 100; ip saddr 10.9.0.0/24 masquerade; }
}
";

#[tokio::test]
async fn tun_wireguard_nftables_fuse_and_docker_find_modules_and_nobody_pays_for_them_before()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::kernel_user()?, "kernel-user:1")?;
    let machine = stand
        .machine(json!({
            "image": image,
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 1024 },
            "init": { "cmd": ["/bin/sh", "-c", DOCKER] },
            "restart": { "policy": "no" },
        }))
        .await?;
    machine.wait("started").await?;
    let modules = machine.shell("cut -d ' ' -f 1 /proc/modules").await?;
    for asked_for_by_nobody in ["tun", "fuse", "wireguard", "nf_tables", "overlay", "bridge"] {
        assert!(!modules.lines().any(|name| name == asked_for_by_nobody), "{modules}");
    }

    // The image's own program finds them, first of all.
    machine
        .shell("modprobe dummy && ip link add d0 type dummy && grep -q ^dummy /proc/modules")
        .await?;
    // Each first use of these is what loads their modules.
    machine.shell("ip tuntap add dev tap9 mode tap && ip link show tap9").await?;
    let device = machine.shell("stat -c '%a %t:%T' /dev/net/tun /dev/fuse").await?;
    assert_eq!(device, "666 a:c8\n666 a:e5\n");
    let wireguard = "ip link add wg0 type wireguard && wg genkey >/tmp/key && wg set wg0 \
                     private-key /tmp/key \
                     listen-port 5182 && ip link set wg0 up && wg show wg0 listen-port";
    assert_eq!(machine.shell(wireguard).await?, "5182\n");
    machine.shell(&format!("nft -f - <<'END'\n{RULES}END")).await?;
    let rules = machine.shell("nft list ruleset").await?;
    assert!(rules.contains("masquerade") && rules.contains("ct state"), "{rules}");
    machine.shell("nft flush ruleset").await?;
    let fuse = "mkdir -p /tmp/a /tmp/b && echo shown >/tmp/a/file && bindfs /tmp/a /tmp/b && cat \
                /tmp/b/file && \
                grep -c ' /tmp/b fuse' /proc/mounts";
    assert_eq!(machine.shell(fuse).await?, "shown\n1\n");

    // What units of Debian go by.
    let own = "while read -r module node numbers; do case $module in \\#*) ;; *) ls /dev/$node; \
               esac; done \
               </lib/modules/$(uname -r)/modules.devname";
    let nodes = machine.shell(own).await?;
    assert!(nodes.lines().any(|node| node == "/dev/loop-control"), "{nodes}");
    let unknown = machine.exec(&["modprobe", "no-such-module"]).await?;
    assert_ne!(unknown.code, 0, "{unknown:?}");
    let written = machine.exec(&["/bin/sh", "-c", "touch /lib/modules/$(uname -r)/x"]).await?;
    assert!(written.stderr.contains("Read-only"), "{written:?}");

    machine.shell("touch /tmp/go").await?;
    machine.logged("docker is up").await?;
    machine.logged("from a container with 1 address").await?;
    machine.logged("docker is done").await?;

    // It goes on with the disk it has mounted.
    machine.post("/suspend", json!(null)).await?.ok()?;
    machine.wait("suspended").await?;
    machine.start().await?;
    machine.wait("started").await?;
    let kind = machine.get().await?["start_kind"].clone();
    assert_eq!(kind, "resume");
    machine.shell("ip link add v0 type vxlan id 7 dstport 4789 dev lo && ip link show v0").await?;

    // From a template, too, where nothing of it was touched.
    machine.destroy().await?;
    stand.server.templates().await?;
    let small = stand.script("sleep 1000000", json!({})).await?;
    small.wait("started").await?;
    assert_eq!(small.get().await?["start_kind"], "template");
    let nothing = small
        .shell("ls /lib/modules 2>/dev/null; grep -c 'caddis/modules' /proc/mounts; true")
        .await?;
    assert_eq!(nothing, "0\n", "the disk with modules is not mounted while nobody asks");
    small
        .shell("tunctl -t tap3 && ip link show tap3 && ls -d /lib/modules/$(uname -r)/kernel")
        .await?;
    Ok(())
}
