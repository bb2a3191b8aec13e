"""Build a Vagrant box of Debian 12 for libvirt: box.py FOLDER. It needs root and mmdebstrap.

For machines without KVM and without a network: what zgate depends on is in it, zgate is not. Its
kernel is beside its disk, so that no boot loader has to run in an emulator.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "vm"))
sys.path.insert(0, str(ROOT / "tests" / "appliance"))

from bed.files import dependencies  # noqa: E402 - tests are no package
from image import KERNEL, SUITE, ImageError, make_disk, step  # noqa: E402

NAME = "zgate-bookworm"
PACKAGES = (
    *(KERNEL, "kmod", "initramfs-tools", "systemd-sysv", "udev", "dbus", "openssh-server", "sudo"),
    *("ifupdown", "isc-dhcp-client", "iproute2", "python3", "python3-apt", "ca-certificates"),
    *("curl", "iputils-ping", "procps", "nftables"),
)
DISK_BYTES = 4 << 30
# The key that Vagrant knows, and everybody else: it is for machines that nobody else can reach.
PUBLIC_KEY = "rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub"
SETTLE = r"""
set -eu
chroot "$1" useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/vagrant"
install -d -m 700 "$1/home/vagrant/.ssh"
cp "$PUBLIC_KEY" "$1/home/vagrant/.ssh/authorized_keys"
chmod 600 "$1/home/vagrant/.ssh/authorized_keys"
chroot "$1" chown -R vagrant:vagrant /home/vagrant/.ssh
echo zgate >"$1/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 zgate\n' >"$1/etc/hosts"
printf '%s\n' 'auto lo' 'iface lo inet loopback' 'auto eth0' 'iface eth0 inet dhcp' \
    >"$1/etc/network/interfaces"
echo UseDNS no >"$1/etc/ssh/sshd_config.d/vagrant.conf"
echo '/dev/vda / ext4 defaults 0 1' >"$1/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer \
    dpkg-db-backup.timer man-db.timer systemd-timesyncd.service
do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done
: >"$1/etc/apt/sources.list"
"""
VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  # Who can reach the machine can reach it anyway.
  config.ssh.insert_key = false
  config.vm.boot_timeout = 900
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd.img")
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"
    libvirt.disk_bus = "virtio"
    libvirt.features = ["acpi", "apic"]
  end
end
"""


def build(folder: Path) -> Path:
    """Make the box; its file."""
    box = folder / f"{NAME}.box"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as name:
        content = Path(name) / "content"
        content.mkdir()
        root = make_root(Path(name))
        for kind, to in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")):
            (found,) = (root / "boot").glob(f"{kind}-*")
            shutil.copy(found, content / to)
            (content / to).chmod(0o644)
        raw = Path(name) / "disk.raw"
        make_disk(root, raw, DISK_BYTES)
        step("qemu-img", "convert", "-O", "qcow2", str(raw), str(content / "box.img"))
        size = DISK_BYTES >> 30
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": size}
        (content / "metadata.json").write_text(json.dumps(metadata))
        (content / "Vagrantfile").write_text(VAGRANTFILE)
        step("tar", "-C", str(content), "-cf", str(box), ".")
    return box


def make_root(folder: Path) -> Path:
    """The machine's files."""
    root = folder / "root"
    settle = folder / "settle.sh"
    (key,) = Path("/usr/share").glob(PUBLIC_KEY)
    settle.write_text(SETTLE.replace("$PUBLIC_KEY", str(key)))
    step(
        # Its mounts are nobody else's, and all of it ends with it.
        *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork"),
        *("--kill-child", "mmdebstrap", "--mode=root", "--variant=minbase"),
        f"--include={','.join([*PACKAGES, *dependencies()])}",
        f"--customize-hook=sh {settle} $1",
        *(SUITE, str(root)),
    )
    return root


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1])))
    except ImageError as error:
        sys.exit(str(error))
