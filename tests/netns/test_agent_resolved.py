"""Names of services by a real systemd-resolved, where there is one on this machine.

It is not among the tests' packages: to install it changes how the machine itself resolves names.
"""

from __future__ import annotations

import json
import shutil
import sys
from ipaddress import ip_interface
from pathlib import Path

import pytest
from agent_support.name_server import NameServer, serving
from zgate_lab.lab import Lab, Port

GATEWAY, OWN = "10.100.0.1", "192.0.2.53"
SERVICE, OTHER = "pacs.zgate.internal", "www.example.org"
DAEMON = Path("/lib/systemd/systemd-resolved")
MISSING = [one for one in ("resolvectl", "dbus-daemon") if shutil.which(one) is None]
MISSING += [] if DAEMON.exists() else ["systemd-resolved"]

# A bus, systemd-resolved on it, and resolv.conf with its stub; all in mounts of its own.
HOST = f"""\
set -e
mount -t sysfs none /sys
mount -t tmpfs none /run
mount -t tmpfs none /mnt
cp -a /etc/. /mnt/
echo 'nameserver 127.0.0.53' > /mnt/resolv.conf
grep -q ^systemd-resolve: /mnt/passwd || {{
    echo 'systemd-resolve:x:64101:64101::/:/bin/false' >> /mnt/passwd
    echo 'systemd-resolve:x:64101:' >> /mnt/group
}}
mount --bind /mnt /etc
mkdir -p /run/dbus /run/systemd/resolve
chown systemd-resolve: /run/systemd/resolve
cat > /run/bus.conf <<'X'
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow own="*"/>
<allow send_type="method_call"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
X
dbus-daemon --config-file=/run/bus.conf --nofork &
bus=$!
{DAEMON} 2>/run/resolved.log &
resolved=$!
trap 'kill $resolved $bus; wait' EXIT
for _ in $(seq 100); do [ -S /run/systemd/resolve/io.systemd.Resolve ] && break; sleep 0.1; done
resolvectl dns eth0 {OWN}
resolvectl domain eth0 '~.'
"$@"
"""
DEVICE = """
import json, subprocess, sys
from ipaddress import ip_address
from pathlib import Path
from zgate_agent.config import DnsMode
from zgate_agent.split_dns import SplitDns
from zgate_datapath.tun import Tun
from zgate_protocol.dns_capsule import DnsAssign

def call(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout

def look_up(name):
    return (call("getent", "ahostsv4", name).split() or [""])[0]

before = Path("/etc/resolv.conf").read_text()
tun = Tun.open("tun0")
call("ip", "addr", "add", "10.100.0.7/32", "dev", "tun0")
call("ip", "link", "set", "tun0", "up")
names = SplitDns(DnsMode.AUTO, None, "tun0")
state = names.apply(DnsAssign((ip_address("10.100.0.1"),), ("zgate.internal",)), (4,))
said = {"method": state.method, "notes": state.notes}
said["service"], said["other"] = look_up(sys.argv[1]), look_up(sys.argv[2])
names.withdraw()
said["after"] = call("resolvectl", "dns", "tun0").split(":")[1].strip()
said["same_file"] = Path("/etc/resolv.conf").read_text() == before
print(json.dumps(said))
"""


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_services_are_asked_from_the_gateway_and_all_else_as_before(lab: Lab) -> None:
    device, isp = lab.add_namespace("device"), lab.add_namespace("isp")
    lab.connect(
        Port(device, "eth0", (ip_interface("192.0.2.7/24"),)),
        Port(isp, "device", (ip_interface("192.0.2.53/24"),)),
    )
    device.ip("link set lo up", f"addr add {GATEWAY}/32 dev lo")
    gateway = NameServer(device, GATEWAY, SERVICE, "10.101.0.1")
    own = NameServer(isp, OWN, OTHER, "198.51.100.80")
    shell = ["unshare", "--mount", "--propagation", "private", "--", "bash", "-c", HOST, "host"]
    with serving(gateway), serving(own):
        done = device.run(*shell, sys.executable, "-c", DEVICE, SERVICE, OTHER)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["method"], said["notes"]) == ("systemd-resolved", [])
    assert (said["service"], said["other"]) == ("10.101.0.1", "198.51.100.80")
    assert set(gateway.asked) == {SERVICE}, "nothing else is told to the gateway"
    assert OTHER in own.asked and SERVICE not in own.asked
    assert said["after"] == "" and said["same_file"]
