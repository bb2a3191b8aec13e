"""Where the units' files are, for whoever reads a unit's configuration from outside of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ETC, RUN = Path("/etc/zgate"), Path("/run")


@contextmanager
def as_unit(*, credentials: Path, runtime: Path | None = None) -> Iterator[None]:
    """Read a configuration as its unit does: ``credential:NAME`` is a file of `credentials`.

    Only where this process has been given nothing of the kind itself.
    """
    given = {"CREDENTIALS_DIRECTORY": credentials, "RUNTIME_DIRECTORY": runtime}
    added = {
        name: str(folder)
        for name, folder in given.items()
        if folder is not None and not os.environ.get(name) and folder.is_dir()
    }
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def gateway_credentials() -> Path:
    """What zgate-gateway.service hands over."""
    return ETC / "credentials" / "gateway"


def agent_folders(config: Path) -> tuple[Path, Path]:
    """Credentials and runtime folder of the agent with this configuration: zgate-agent@NAME."""
    name = config.stem
    return ETC / "credentials" / "agents" / name, RUN / "zgate-agent" / name


def only_agent() -> Path | None:
    """The configuration of the agent that is a unit here; None: there is none, or several."""
    found = sorted((ETC / "agents").glob("*.yaml"))
    return found[0] if len(found) == 1 else None
