"""Connectors as they are deployed: the real command line, at hosts of private networks.

Beside a `Deployment`, which has the gateway that they dial.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zgate_lab.deployment import BIN, SERVER_NAME, Deployment
from zgate_lab.internet import Host
from zgate_lab.process import Process
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import wait_until

START_TIMEOUT_S = 30.0
ORDINARY_USER = "nobody"

# What udev sees to on a Debian with udev: everybody may open it, and make TUNs where they may.
_WITH_TUN = """\
mount -t tmpfs -o mode=755 none "$0" && mknod -m 666 "$0/tun" c 10 200 &&
mount --bind "$0/tun" /dev/net/tun && exec "$@"
"""
_WITH_RESOLV_CONF = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


def in_private_mounts(script: str, directory: Path, argv: Sequence[str | Path]) -> list[str]:
    """A command line that runs a shell script in a mount namespace of its own, and then `argv`.

    The script sees `directory` as $0 and ends with `exec "$@"`.
    """
    shell = ("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script)
    return [*shell, str(directory), *map(str, argv)]


def with_resolv_conf(resolv_conf: Path, argv: Sequence[str | Path]) -> list[str]:
    """A command line for which a file stands in the place of /etc/resolv.conf."""
    return in_private_mounts(_WITH_RESOLV_CONF, resolv_conf, argv)


class Connectors:
    """The connectors of a deployment, by name."""

    def __init__(self, zgate: Deployment) -> None:
        self.zgate = zgate
        self.processes: dict[str, Process] = {}
        self._unprivileged: set[str] = set()

    def issue(self, name: str, *services: str) -> None:
        """A client certificate that may offer these services; more may be in the policy."""
        words = [word for service in services for word in ("--connector", service)]
        self.zgate.issue(name, "client", *words)

    def config(self, name: str, **content: Any) -> dict[str, Any]:
        """A connector's configuration, as the file will hold it; `content` wins."""
        own = self.directory(name)
        return {
            "gateways": [f"{self.zgate.host.ipv4}:443"],
            "server_name": SERVER_NAME,
            "ca": str(self.zgate.pki / "ca.crt"),
            "certificate": str(own / f"{name}.crt"),
            "key": str(own / f"{name}.key"),
            "runtime_dir": str(self.runtime_dir(name)),
            # Tests open many connections from one host on purpose.
            "limits": {"new_flows_per_s": 100_000, "open_flows_per_client": 4096},
            **content,
        }

    def directory(self, name: str) -> Path:
        """Where its certificate and key are."""
        return self.zgate.directory / name

    def runtime_dir(self, name: str) -> Path:
        """Where its socket is: the connector's own user can write there."""
        kind = "user-run" if name in self._unprivileged else "run"
        return self.zgate.internet.lab.run.directory / f"{name}-{kind}"

    def spawn(self, name: str, host: Host, **content: Any) -> Process:
        """Start a connector on a host; returns at once. `content`: its services, or networks."""
        self._unprivileged.discard(name)
        return self.spawn_with(name, host, self.config(name, **content))

    def spawn_with(self, name: str, host: Host, config: dict[str, Any]) -> Process:
        """The same with a whole configuration."""
        file = self.zgate.directory / f"{name}.yaml"
        file.write_text(json.dumps(config, indent=2))
        return self._spawn(name, host, [BIN / "zgate-connector", "--config", file])

    def spawn_unprivileged(self, name: str, host: Host, **content: Any) -> Process:
        """The same as an ordinary user's process, without a capability."""
        self._unprivileged.add(name)
        user = pwd.getpwnam(ORDINARY_USER)
        home = self.zgate.internet.lab.run.directory / f"{name}-home"
        home.mkdir(exist_ok=True)
        own = {"certificate": f"{name}.crt", "key": f"{name}.key", "ca": "ca.crt"}
        for kind, file in own.items():
            source = self.zgate.pki if kind == "ca" else self.directory(name)
            shutil.copy(source / file, home / file)
        paths = {kind: str(home / file) for kind, file in own.items()}
        config = self.config(name, **paths, **content)
        (home / "connector.yaml").write_text(json.dumps(config, indent=2))
        run = self.runtime_dir(name)
        run.mkdir(exist_ok=True)
        for path in (run, *run.iterdir(), home, *home.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        devices = self.zgate.internet.lab.run.directory / f"{name}-devices"
        devices.mkdir(exist_ok=True)
        command = [
            *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
            *(str(BIN / "zgate-connector"), "--config", str(home / "connector.yaml")),
        ]
        return self._spawn(name, host, in_private_mounts(_WITH_TUN, devices, command))

    def _spawn(self, name: str, host: Host, argv: Sequence[str | Path]) -> Process:
        process = host.namespace.spawn(name, *argv)
        self.processes[name] = process
        return process

    def start(self, name: str, host: Host, **content: Any) -> Process:
        """Start a connector and wait until the gateway has everything that it offers."""
        process = self.spawn(name, host, **content)
        self.wait_offering(name)
        return process

    def wait_offering(self, name: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Wait until the gateway uses all offers of a connector; the connector as it shows it."""
        return self.processes[name].wait_for(
            lambda: self.offering(name), timeout_s, f"the offers of {name}"
        )

    def offering(self, name: str) -> dict[str, Any]:
        """A connector as the gateway shows it, if it uses all of its offers; else empty."""
        found = self.seen(name)
        offers = [*found.get("services", ()), *found.get("routes", ())]
        return found if offers and all(one["state"] == "up" for one in offers) else {}

    def seen(self, name: str) -> dict[str, Any]:
        """A connector as the gateway sees it (`zgatectl connectors --json`); empty: not there."""
        answer = get_json(self.zgate.socket, "/v1/connectors") or {"connectors": []}
        return next((one for one in answer["connectors"] if one["name"] == name), {})

    def service(self, name: str) -> dict[str, Any]:
        """A service as the gateway sees it (`zgatectl services --json`); empty: not there."""
        answer = get_json(self.zgate.socket, "/v1/services") or {"services": []}
        return next((one for one in answer["services"] if one["name"] == name), {})

    def status(self, name: str) -> dict[str, Any]:
        """What a connector says of itself; empty when it does not answer."""
        return get_json(self.runtime_dir(name) / "connector.sock", "/v1/status") or {}

    def wait_gone(self, name: str, timeout_s: float = 10.0) -> None:
        """Wait until the gateway has no session of this connector."""
        wait_until(lambda: name not in self.zgate.sessions(), timeout_s, f"{name} to be gone")

    def stop(self, name: str) -> int:
        """SIGTERM; its exit status, once the gateway has forgotten it."""
        status = self.processes.pop(name).stop()
        self._unprivileged.discard(name)
        self.wait_gone(name)
        return status
