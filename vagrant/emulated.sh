#!/bin/sh
# Run a command where libvirt is, and nothing else: emulated.sh COMMAND...
#
# libvirtd runs in a mount and a network namespace of its own, with its files in build/vagrant: the
# host's libvirt, networks and firewall are not touched. All of it, machines included, ends with the
# command. For hosts without KVM, and for tests; it needs root, and a box from `make vagrant-box`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
state=$here/../build/vagrant
mkdir -p "$state"
state=$(cd "$state" && pwd)
[ -e "$state/zgate-bookworm.box" ] || { echo "there is no box: make vagrant-box" >&2; exit 1; }
export ZGATE_STATE="$state" ZGATE_HERE="$here" ZGATE_BOX=zgate-bookworm ZGATE_DRIVER=qemu
export VAGRANT_HOME="$state/home" VAGRANT_DOTFILE_PATH="$state/machines" LIBGUESTFS_BACKEND=direct
export VAGRANT_DEFAULT_PROVIDER=libvirt VAGRANT_CHECKPOINT_DISABLE=1
export PATH="$here/../build/appliance-venv/bin:$PATH"
export ANSIBLE_HOME="$state/ansible" ANSIBLE_LOCAL_TEMP="$state/ansible/tmp"

# --kill-child: who kills the script ends the emulators, too.
exec unshare --mount --net --pid --mount-proc --fork --kill-child --propagation private \
    sh -euc '
ip link set lo up
for folder in /var/lib/libvirt /run/libvirt /etc/libvirt /var/log/libvirt /var/cache/libvirt; do
    own=$ZGATE_STATE/libvirt$folder
    mkdir -p "$own" "$folder"
    [ "$folder" != /etc/libvirt ] || [ -e "$own/qemu.conf" ] || cp -a /etc/libvirt/. "$own"
    mount --bind "$own" "$folder"
done
mkdir -p /var/lib/libvirt/images
cat >/etc/libvirt/qemu.conf <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
EOF
cat >/etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
auth_unix_ro = "none"
EOF
/usr/sbin/virtlogd --daemon
/usr/sbin/libvirtd --daemon
tries=100
until virsh --connect qemu:///system version >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "libvirtd does not answer: see $ZGATE_STATE/libvirt" >&2; exit 1; }
    sleep 0.2
done
virsh -q --connect qemu:///system pool-info default >/dev/null 2>&1 || {
    virsh -q --connect qemu:///system pool-define-as default dir --target /var/lib/libvirt/images
    virsh -q --connect qemu:///system pool-start default
}
cd "$ZGATE_HERE"
# A box that was built anew takes the place of the one before, and of the copy that libvirt has.
[ "$ZGATE_STATE/home/added" -nt "$ZGATE_STATE/$ZGATE_BOX.box" ] || {
    vagrant box add --force --name "$ZGATE_BOX" "$ZGATE_STATE/$ZGATE_BOX.box"
    rm -f /var/lib/libvirt/images/${ZGATE_BOX}_*
    virsh -q --connect qemu:///system pool-refresh default
    touch "$ZGATE_STATE/home/added"
}
"$@"
' sh "$@"
