"""What checks look at: the host's files, its commands' output, the gateway's configuration."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from zgate_gateway.api import schemas
from zgate_gateway.config import GatewayConfig

_TIMEOUT_S = 10.0
NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command gave; status 127: there is no such command, 124: it did not end in time."""

    status: int
    output: str
    error: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it ended well."""
        return self.status == 0


class Host:
    """This host. Tests put another one in its place."""

    def read(self, path: str | Path) -> str | None:
        """A file's text without spaces around it; None if it cannot be read."""
        try:
            return Path(path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str | Path) -> int | None:
        """A file that holds a number."""
        text = self.read(path)
        return int(text) if text is not None and text.lstrip("-").isdecimal() else None

    def run(self, *argv: str) -> Ran:
        """Run a command; never raises."""
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C", "LANG": "C"},
            )
        except FileNotFoundError:
            return Ran(NOT_FOUND, "", f"{argv[0]} is not installed")
        except subprocess.TimeoutExpired:
            return Ran(124, "", f"{argv[0]} did not end in {_TIMEOUT_S:g} s")
        except OSError as error:
            return Ran(126, "", f"{argv[0]}: {error.strerror}")
        return Ran(done.returncode, done.stdout, done.stderr.strip())

    def run_json(self, *argv: str) -> Any:
        """A command's output as JSON; None if there is none."""
        ran = self.run(*argv)
        try:
            return json.loads(ran.output) if ran.is_ok else None
        except ValueError:
            return None

    @property
    def is_root(self) -> bool:
        """Whether everything can be looked at."""
        return os.geteuid() == 0


@dataclass(slots=True)
class Context:
    """What all checks share.

    :ivar config: None if it cannot be loaded; then `config_problem` says why.
    :ivar status: of the gateway that runs; None if none answers, then `status_problem` says why.
    """

    host: Host
    now: datetime
    config_path: Path
    socket_path: Path
    config: GatewayConfig | None = None
    config_problem: str = ""
    status: schemas.Status | None = None
    status_problem: str = ""
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> GatewayConfig:
        """The configuration, or what holds without one."""
        return self.config or GatewayConfig()

    @property
    def is_elsewhere(self) -> bool:
        """Whether a gateway answers that has another network than this: a container's, say."""
        links = self.host.run_json("ip", "-j", "link") or []
        names = {one["ifname"] for one in links}
        return self.status is not None and bool(names) and self.settings.tun.name not in names

    @property
    def uplinks(self) -> list[str]:
        """The interfaces that packets to clients and for the site go through; may be empty."""
        if self.settings.uplink.interface is not None:
            return [self.settings.uplink.interface]
        if "uplinks" not in self.cache:
            found = []
            for family in ("-4", "-6"):
                routes = self.host.run_json("ip", "-j", family, "route", "show", "default") or []
                found += [route["dev"] for route in routes if "dev" in route]
            self.cache["uplinks"] = list(dict.fromkeys(found))
        return list(self.cache["uplinks"])
