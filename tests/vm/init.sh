#!/bin/sh
# The first process of the virtual machine. The second disk holds the clone as `make test-vm`
# found it, and what to run; the second serial line takes the exit status.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mountpoint -q /run || mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
modprobe -a tun veth
mount /dev/vdb /mnt
# Where it is on the host: the virtual environment's files name that place.
clone=$(cat /mnt/path)
mkdir -p "$clone"
mount --bind /mnt/clone "$clone"
cd "$clone" && sh /mnt/commands
echo $? >/dev/ttyS1
echo o >/proc/sysrq-trigger
sleep 60
