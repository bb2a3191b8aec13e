"""A device, a connector's data part, and the connector's host, each in its own namespace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from zgate_datapath.tun import Tun
from zgate_lab.lab import Lab, Namespace, wait_for_local_routes
from zgate_lab.namespace import command_in, in_namespace

NOBODY = 65534
DEVICES = (ip_address("10.100.0.7"), ip_address("fd7a:7a67:6174:65::7"))
OTHER_DEVICE = ip_address("10.100.0.8")
OFFERS = (ip_address("10.101.255.254"), ip_address("fd7a:7a67:6174:66::ffff"))
MANY = {"new_flows_per_s": 100000, "open_flows_per_client": 4096}
# An ordinary user may use /dev/net/tun where udev has set it up; here he gets one of his own.
_AS_NOBODY = f"""\
mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun || exit 9
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all "$@"
"""
_FRONT = Path(__file__).parent / "front_process.py"

Address = IPv4Address | IPv6Address


class SiteError(Exception):
    """The process answered with an error."""


class Site:
    """The process, asked and told by lines."""

    def __init__(
        self, device: Namespace, host: Namespace, popen: subprocess.Popen[str], tun: Tun
    ) -> None:
        self._has_vnet_header = tun.has_vnet_header
        self.device = device
        self.host = host
        self._popen = popen
        self.pid = self.chamber_pid = self.uid = 0

    def begin(self, services: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> None:
        started = self._tell(
            {"services": services, "limits": limits, "has_vnet_header": self._has_vnet_header}
        )
        self.pid, self.chamber_pid, self.uid = (started[one] for one in ("pid", "chamber", "uid"))

    def ask(self, op: str, **fields: Any) -> Any:
        return self._tell({"op": op, **fields})["answer"]

    def serve(self, *names: str) -> int:
        """Serve these at OFFERS; the files that are open then."""
        offers = {name: [str(one) for one in OFFERS] for name in names}
        open_files = int(self.ask("serve", offers=offers)["open_files"])
        wait_for_local_routes(Path(f"/proc/{self.chamber_pid}/net"), OFFERS if names else ())
        return open_files

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.ask("statuses")[name])

    def _tell(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(message) + "\n")
        self._popen.stdin.flush()
        answer = json.loads(self._popen.stdout.readline() or '{"error": "the process has ended"}')
        if "error" in answer:
            raise SiteError(answer["error"])
        return dict(answer)

    def connect(
        self,
        port: int,
        to: Address = OFFERS[0],
        *,
        source: Address | None = None,
        timeout_s: float = 20,
    ) -> socket.socket:
        """A TCP connection from the device."""
        with in_namespace(self.device.name):
            sock = socket.socket(_family(to), socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        if source is not None:
            sock.bind((str(source), 0))
        try:
            sock.connect((str(to), port))
        except OSError:
            sock.close()
            raise
        sock.settimeout(20)
        return sock

    def udp(self, to: Address = OFFERS[0], port: int = 0) -> socket.socket:
        """A UDP socket of the device, connected."""
        with in_namespace(self.device.name):
            sock = socket.socket(_family(to), socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.connect((str(to), port))
        return sock

    def listen(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A listening socket on the connector's host, at a port of the kernel's choice."""
        return self._on_host(family, socket.SOCK_STREAM)

    def bind_udp(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A UDP socket on the connector's host."""
        return self._on_host(family, socket.SOCK_DGRAM)

    def _on_host(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        with in_namespace(self.host.name):
            sock = socket.socket(family, kind)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        sock.settimeout(20)
        return sock


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@contextmanager
def open_site(
    lab: Lab,
    *,
    as_nobody: bool,
    has_tun: bool = True,
    has_vnet_header: bool = True,
    within: Sequence[str] = (),
) -> Iterator[Site]:
    """The namespaces, the device's TUN, and the process, which waits for `begin`.

    `within` is a command that the process is started by.
    """
    device, host = lab.add_namespace("device"), lab.add_namespace("host")
    with in_namespace(device.name):
        tun = Tun.open("tun0", has_vnet_header=has_vnet_header)
    device.ip(
        "link set tun0 mtu 1420 up",
        *(f"addr add {one} dev tun0" + (" nodad" if one.version == 6 else "") for one in DEVICES),
        f"addr add {OTHER_DEVICE} dev tun0",
        "route add default dev tun0",
        "route add ::/0 dev tun0",
    )
    command = [*within, sys.executable, str(_FRONT), str(tun.fd)]
    if as_nobody:
        shell = _AS_NOBODY if has_tun else _AS_NOBODY.replace("chmod 666", "chmod 600")
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", shell, "sh", *command]
    popen = subprocess.Popen(
        command_in(host.name, command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(tun.fd,),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        yield Site(device, host, popen, tun)
    finally:
        assert popen.stdin is not None
        assert popen.stdout is not None
        popen.stdin.close()
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        popen.stdout.close()
        tun.close()
