"""A gateway that serves the dialects, and their scripted clients, over loopback."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from ....dialect_clients import DialectClient, configuration, dial  # noqa: TID252
from ....loopback import HOST, Gateway, Lab, engine, lab, pki  # noqa: TID252

__all__ = ["engine", "lab", "pki"]

Dial = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def dialling(lab: Lab) -> Dial:
    """Connects a scripted client of a kind to a gateway, under a name."""

    def connect(
        kind: type[DialectClient], gateway: Gateway, name: str = "alice"
    ) -> AbstractAsyncContextManager[Any]:
        own = lab.pki.client(name)
        settings = configuration(
            kind.protocol, HOST, str(lab.pki.ca_file), str(own.certificate), str(own.key)
        )
        return dial(kind, str(gateway.endpoint.udp.local_address[0]), gateway.port, settings)

    return connect
