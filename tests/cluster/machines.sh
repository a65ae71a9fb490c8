#!/usr/bin/env bash
# A laptop and, beside it, the hosts of a cluster, all on this machine: namespaces with processes, network,
# /tmp, /dev/shm and home of their own. machines.py starts it. When its first process dies, all of it is gone.
#
#   machines.sh laptop FOLDER SUBNET HOST...    starts the hosts, then touches FOLDER/ready
#   machines.sh host FOLDER SUBNET HOST N       at SUBNET.N
#
# FOLDER/shared is /mnt/shared everywhere, like a network disk; FOLDER/ssh is /etc/ssh. $KEEP: what has to be seen
# although it lies in a folder that is private here, or on another disk than /; a line each.
set -euo pipefail
role=$1 folder=$2 subnet=$3
shift 3
mount --make-rprivate /

# A root of its own: below is what is here, above in memory what is written.
new_root() {
    local root=$folder/$1/root place
    mkdir -p "$folder/$1/disk" "$root"
    mount -t tmpfs tmpfs "$folder/$1/disk"
    mkdir "$folder/$1/disk/upper" "$folder/$1/disk/work"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/$1/disk/upper,workdir=$folder/$1/disk/work" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs tmpfs "$root/run"
    mkdir -p "$root/run/sshd" "$root/etc/ssh" "$root/mnt/shared" "$root/home/$1"
    while read -r place; do
        [ -n "$place" ] || continue
        mkdir -p "$root$place"
        mount --bind "$place" "$root$place"
        mount -o remount,bind,ro "$root$place"
    done <<<"$KEEP"
    mount --bind "$folder/ssh" "$root/etc/ssh"
    mount --bind "$folder/shared" "$root/mnt/shared"
    touch "$root/home/$1/.bashrc"
    # ssh and sshd ask these for root's home, and whether root may log in.
    sed -i "s|^root:.*|root:x:0:0:root:/home/$1:/bin/bash|" "$root/etc/passwd"
    sed -i "s|^root:[^:]*|root:*|" "$root/etc/shadow"
    hostname "$1"
    ip link set lo up
}

# Waits for a file, and fails where the process that should make it has ended.
wait_for() {
    until [ -e "$1" ]; do
        kill -0 "$2"
        sleep 0.05
    done
}

if [ "$role" = laptop ]; then
    new_root laptop
    ip link add switch type bridge
    ip address add "$subnet.254/24" dev switch
    ip link set switch up
    number=0
    for host in "$@"; do
        number=$((number + 1))
        unshare --net --mount --mount-proc --pid --uts --ipc --fork --kill-child \
            bash "$0" host "$folder" "$subnet" "$host" "$number" >"$folder/$host.log" 2>&1 &
        echo $! >"$folder/$host.pid"
        wait_for "$folder/$host.waits" $!
        ip link add "$host" type veth peer name eth0 netns $!
        ip link set "$host" master switch up
        touch "$folder/$host.plugged"
        wait_for "$folder/$host.up" $!
    done
    touch "$folder/ready"
    # Not exec: the first process has to bury the others, which bash does and sleep does not.
    sleep infinity
    exit
fi

host=$1 number=$2
new_root "$host"
touch "$folder/$host.waits"
wait_for "$folder/$host.plugged" $$
ip address add "$subnet.$number/24" dev eth0
ip link set eth0 up
ip route add default via "$subnet.254" # leads nowhere; from it Ray learns which address is the host's own
touch "$folder/$host.up"
chroot "$folder/$host/root" /usr/sbin/sshd -D -e
exit
