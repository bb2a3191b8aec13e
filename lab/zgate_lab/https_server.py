"""The office's HTTPS server: says who asked, serves bytes, writes down every request.

    GET  /            {"server": NAME, "client": ADDRESS}
    GET  /bytes/N     N zero bytes (at most 1 GiB)
    POST /            takes the body in and answers its length

One JSON line per request goes to the log, flushed before the answer's last byte, so that a test
that has its answer finds the line.

    python -m zgate_lab.https_server --name office --directory DIR --addresses 10.20.0.5
"""

import argparse
import datetime
import http.server
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

READY = "https ready"
CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "key.pem"
LOG_FILE = "requests.jsonl"
MAX_BODY_BYTES = 1 << 30
CHUNK_BYTES = 1 << 16
REQUEST_TIMEOUT_S = 30
CERTIFICATE_LIFETIME = datetime.timedelta(days=2)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One line of the server's log."""

    time_s: float  # since the epoch
    client: str  # address, an IPv4 one without the ::ffff: of a dual-stack socket
    client_port: int
    method: str
    path: str
    body_bytes: int  # of the answer to a GET, of the request else

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Parse a line."""
        return cls(**json.loads(line))


def read_log(path: Path) -> list[RequestRecord]:
    """Return the requests so far; a line that is still being written is left for later."""
    if not path.exists():
        return []
    complete = path.read_text().rpartition("\n")[0]
    return [RequestRecord.from_json(line) for line in complete.splitlines()]


def make_certificate(directory: Path, name: str, addresses: list[str]) -> None:
    """Write a new self-signed certificate for the name and addresses, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + CERTIFICATE_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / CERTIFICATE_FILE).write_bytes(certificate.public_bytes(pem))
    key_path = directory / KEY_FILE
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


class Server(http.server.ThreadingHTTPServer):
    """Both families on one port; TLS is spoken in each connection's own thread."""

    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, directory: Path, name: str):
        self.name = name
        self._log_path = directory / LOG_FILE
        self._log_lock = threading.Lock()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
        super().__init__(("::", port), Handler)

    def server_bind(self) -> None:
        """Take IPv4 in too."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the handshake happens on the first read, so a silent client blocks no other."""
        connection, address = self.socket.accept()
        connection.settimeout(REQUEST_TIMEOUT_S)
        wrapped = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return wrapped, address

    def record(self, record: RequestRecord) -> None:
        """Append one line to the log."""
        with self._log_lock, self._log_path.open("a") as log:
            log.write(record.to_json() + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for a client that broke off, instead of a traceback."""
        print(f"{client_address}: {request!r}: {sys.exc_info()[1]!r}", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Serve `/` and `/bytes/N`."""
        if self.path == "/":
            text = json.dumps({"server": self.server.name, "client": self._client()})
            self._answer(text.encode() + b"\n", "application/json")
            return
        size = self.path.removeprefix("/bytes/")
        if size == self.path or not size.isdecimal() or int(size) > MAX_BODY_BYTES:
            self.send_error(404)
            return
        self._record(int(size))
        self._start(int(size), "application/octet-stream")
        zeros = bytes(CHUNK_BYTES)
        for start in range(0, int(size), CHUNK_BYTES):
            self.wfile.write(zeros[: int(size) - start])

    def do_POST(self) -> None:
        """Take a body in and answer its length."""
        left = min(int(self.headers.get("Content-Length", "0")), MAX_BODY_BYTES)
        taken = 0
        while left and (chunk := self.rfile.read(min(left, CHUNK_BYTES))):
            taken += len(chunk)
            left -= len(chunk)
        self._answer(json.dumps({"bytes": taken}).encode() + b"\n", "application/json", taken)

    def log_message(self, format: str, *args: object) -> None:
        """The log is ours: `record`."""

    def _answer(self, body: bytes, content_type: str, body_bytes: int | None = None) -> None:
        self._record(len(body) if body_bytes is None else body_bytes)
        self._start(len(body), content_type)
        self.wfile.write(body)

    def _start(self, length_bytes: int, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length_bytes))
        self.end_headers()

    def _record(self, body_bytes: int) -> None:
        self.server.record(
            RequestRecord(
                time.time(),
                self._client(),
                self.client_address[1],
                self.command,
                self.path,
                body_bytes,
            )
        )

    def _client(self) -> str:
        address = ipaddress.IPv6Address(self.client_address[0].partition("%")[0])
        return str(address.ipv4_mapped or address)


def main() -> None:
    """Serve until the process that started this one is gone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--addresses", nargs="*", default=[])
    parser.add_argument("--port", type=int, default=443)
    arguments = parser.parse_args()
    make_certificate(arguments.directory, arguments.name, arguments.addresses)
    server = Server(arguments.port, arguments.directory, arguments.name)
    started_by = os.getppid()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(READY, flush=True)
    while os.getppid() == started_by:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
