"""Debian's OpenVPN: UDP, AES-128-GCM, server mode, its own defaults otherwise.

Each end knows the other's certificate by its fingerprint (OpenVPN 2.6), so no CA is needed.
DCO is off: it needs a kernel module.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bench.hosts import SERVER_NETWORK, UPLINK, Hosts
from bench.peers.peer import Peer, find, first_line

PORT = 1194
DEVICE = "tunovpn"
START_TIMEOUT_S = 15.0
READY = "Initialization Sequence Completed"

COMMON = f"""\
dev {DEVICE}
dev-type tun
proto udp4
port {PORT}
data-ciphers AES-128-GCM
allow-compression no
disable-dco
verb 3
"""
SERVER_ONLY = f"""\
server 10.8.0.0 255.255.255.0
topology subnet
dh none
keepalive 10 60
push "route {SERVER_NETWORK.network_address} {SERVER_NETWORK.netmask}"
"""
CLIENT_ONLY = f"""\
client
nobind
remote {UPLINK.ip} {PORT}
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """A self-signed certificate and its key, as PEM, and its SHA-256 fingerprint."""

    certificate: str
    key: str
    fingerprint: str

    @classmethod
    def make(cls, name: str, usage: x509.ObjectIdentifier) -> "Identity":
        """Make a key and sign its certificate with it."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
            certificate.fingerprint(hashes.SHA256()).hex(":"),
        )


class OpenVpn(Peer):
    """One openvpn process at each end."""

    name = "openvpn"
    title = "OpenVPN"
    programs: ClassVar[dict[str, str]] = {"openvpn": "openvpn"}

    def __init__(self, hosts: Hosts):
        super().__init__(hosts)
        server = Identity.make("gateway", ExtendedKeyUsageOID.SERVER_AUTH)
        client = Identity.make("client", ExtendedKeyUsageOID.CLIENT_AUTH)
        directory = hosts.directory("openvpn")
        self._server_file = directory / "server.conf"
        self._client_file = directory / "client.conf"
        write_config(self._server_file, COMMON + SERVER_ONLY, server, client)
        write_config(self._client_file, COMMON + CLIENT_ONLY, client, server)

    def start(self) -> None:
        self._undo.enter_context(self.hosts.forwarding())
        program = find("openvpn") or "openvpn"
        server = self._spawn(
            self.hosts.gateway, "openvpn-server", program, "--config", self._server_file
        )
        client = self._spawn(
            self.hosts.client, "openvpn-client", program, "--config", self._client_file
        )
        server.wait_for_output(READY, START_TIMEOUT_S)
        client.wait_for_output(READY, START_TIMEOUT_S)
        self.gateway_process = server

    def version(self) -> str:
        return " ".join(first_line(find("openvpn") or "openvpn", "--version").split()[:2])


def write_config(file: Path, options: str, own: Identity, other: Identity) -> None:
    """Write one end's configuration, key included, readable by its owner only."""
    file.touch(mode=0o600)
    file.write_text(
        f"{options}"
        f"peer-fingerprint {other.fingerprint}\n"
        f"<cert>\n{own.certificate}</cert>\n"
        f"<key>\n{own.key}</key>\n"
    )
