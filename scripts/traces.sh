#!/usr/bin/env bash
# Lists what a server makes on a host, one per line, sorted: the list is the same before and after a server was there.
set -euo pipefail

{
    ps -e -o comm= -o args= | awk '$1 ~ /^(qemu-system|caddis|docker-registry)/ && !/defunct/ { $1 = ""; print "process" $0 }'
    ip -oneline link | awk '{ sub(/@.*/, "", $2); print "link", $2 }'
    ip route show table all | sed 's/^/route /'
    { ip rule; ip -6 rule; } | sed 's/^/rule /'
    nft --stateless list ruleset | sed 's/^/filter /'
    for setting in ipv4/ip_forward ipv6/conf/all/forwarding; do
        [[ -e /proc/sys/net/$setting ]] && echo "setting $setting $(<"/proc/sys/net/$setting")"
    done
    awk '{ print "mount", $5 }' /proc/self/mountinfo
    find /sys/fs/cgroup -type d -path '*caddis*' 2>/dev/null | sed 's/^/cgroup /'
    find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'caddis-*' | sed 's/^/file /'
    # Networks of installations, and what is noted of this host. A data directory that is gone gives its own back with the
    # next start, and a network namespace that is gone has no host to put in order.
    if [[ -d /run/caddis/networks ]]; then
        for claim in /run/caddis/networks/*; do
            owner=$([[ ${claim##*/} =~ ^[0-9]+$ ]] && cat "$claim" 2>/dev/null) || continue
            [[ -e $owner ]] && echo "network ${claim##*/} of $owner"
        done
        find /run/caddis/networks -name "forwarding-$(stat -Lc %i /proc/self/ns/net).json" | sed 's/^/network /'
    fi
    # A slot is held as long as a VM or server lives. The files of /run/caddis themselves may stay.
    if [[ -d /run/caddis ]]; then
        find /run/caddis -type f | while IFS= read -r file; do
            flock --nonblock "$file" true || echo "held $file"
        done
    fi
} | sort -u
