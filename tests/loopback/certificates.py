"""An authority, and the files that it gives to both ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage

HOST = "gateway.test"


@dataclass(frozen=True)
class Identity:
    """Files of one certificate and its key."""

    certificate: Path
    key: Path
    serial: str = ""


class Pki:
    """An authority with a gateway's certificate; clients' are made when asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = CertificateAuthority.create(directory / "ca", now=datetime.now(UTC))
        self.gateway = self.issue("gateway", usage=Usage.SERVER, dns_names=[HOST])
        self._clients: dict[str, Identity] = {}

    @property
    def ca_file(self) -> Path:
        return self.authority.ca_file

    def issue(self, name: str, **more: Any) -> Identity:
        now = datetime.now(UTC)
        issued = self.authority.issue(name, **{"now": now, **more})
        serial = issued.issued.serial_text
        identity = Identity(
            self.directory / f"{serial}.crt", self.directory / f"{serial}.key", serial
        )
        identity.certificate.write_bytes(issued.certificate_pem)
        identity.key.write_bytes(issued.key_pem)
        return identity

    def client(self, name: str) -> Identity:
        if name not in self._clients:
            self._clients[name] = self.issue(name, groups=["staff"])
        return self._clients[name]

    def issuer_certificate(self) -> x509.Certificate:
        return self.authority.certificate
