#!/usr/bin/env bash
# Tests Caddis on a host as people have it: KVM, systemd as process 1, cgroup v2. Where the machine at hand has none of
# these, they can be had inside an emulated AMD processor, whose SVM is emulated too: slow, but the real code path.
# Prints what the tests inside print; the runner's summary comes last. PROFILE=debug tests what the tests are built with,
# otherwise it is a release.
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ $(id -u) -eq 0 ]] || { echo "building a system needs root: sudo make test-host" >&2; exit 1; }
readonly host=target/test-host built=target/${PROFILE:-release}
started=$SECONDS
work=$(mktemp -d "$PWD/target/test-host-run.XXXXXX")
trap 'rm -rf "$work"' EXIT

payload=$work/payload
mkdir "$payload"
export DPKG_DEB_COMPRESSOR_TYPE=none
mv "$(scripts/deb.sh "$built/caddis")" "$payload/caddis.deb"
mv "$(scripts/deb.sh "$built/caddis" 0.0.1)" "$payload/earlier.deb"
cp scripts/test-host/inside.sh "$payload/run.sh"
echo "${TESTS:-}${BENCH:+ templates_and_the_pool_are_worth_what_is_promised}" >"$payload/tests"
[[ -z ${BENCH:-} ]] || for program in caddis bench; do strip -o "$payload/$program" "$built/$program"; done
for image in web busybox; do cp -rT "$($built/test-image "$image")" "$payload/$image"; done
truncate --size=384M "$work/payload.img"
mke2fs -q -t ext4 -d "$payload" "$work/payload.img"
qemu-img create -q -f qcow2 -b "$PWD/$host/disk" -F raw "$work/disk.qcow2"

# One processor: with two, what runs on one of them now and then damages the stack of the kernel on the other, when both
# run guests. 15 minutes are what it may take on a host with 2; twice that means that it hangs.
emulator=(timeout --signal=KILL 1800 "$host/qemu/usr/bin/qemu-system-x86_64" -L "$host/qemu/usr/share/qemu"
    -L "$host/qemu/usr/share/seabios" -M q35 -accel tcg,thread=multi,tb-size=1024 -cpu max -smp 1 -m 8192 -nographic
    -drive "file=$work/disk.qcow2,format=qcow2,if=virtio,cache=unsafe"
    -drive "file=$work/payload.img,format=raw,if=virtio,readonly=on"
    -nic none -device virtio-rng-pci -kernel "$host/vmlinuz" -initrd "$host/initrd.gz"
    -append 'console=ttyS0 panic=10 quiet mitigations=off')
log=target/test-host.log
code=0
"${emulator[@]}" </dev/null 2>&1 | stdbuf -oL tr -d '\r' | tee "$log" | grep --line-buffered --text -E '^(test |----|\+|error)|^ ' || code=$?
echo "the host's console is in $log; $((SECONDS - started)) s"
summary=$(grep --text '^test result:' "$log" | tail -n 1 || true)
[[ -n $summary ]] || { tail -n 30 "$log"; echo "the host did not get to the end of its tests" >&2; exit 1; }
printf '\n%s\n' "$summary"
[[ $summary == 'test result: ok.'* ]]
