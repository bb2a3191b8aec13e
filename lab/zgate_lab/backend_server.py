"""A backend that says its name: TCP and UDP echo, and HTTP that answers who answered.

TCP 7, UDP 7   what comes in goes back
TCP 8080       GET / -> the name

python -m zgate_lab.backend_server --name hospital1
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import socket
import socketserver
import threading
import time
from http import HTTPStatus

READY = "backend ready"
ECHO_PORT = 7
GREETING_PORT = 17
NAME_PORT = 8080
CHUNK_BYTES = 1 << 16
IDLE_TIMEOUT_S = 60.0


class _DualStack(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Both families on one port, a thread for each connection."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes, until the client has sent all."""

    def handle(self) -> None:
        """One connection."""
        self.request.settimeout(IDLE_TIMEOUT_S)
        with contextlib.suppress(OSError):  # the client's end of it is the client's matter
            while data := self.request.recv(CHUNK_BYTES):
                self.request.sendall(data)


def greeting_handler(name: str) -> type[Echo]:
    """A handler that says the name first."""

    class Handler(Echo):
        def setup(self) -> None:
            """Greet."""
            self.request.sendall(f"{name}\n".encode())

    return Handler


class DatagramEcho(socketserver.BaseRequestHandler):
    """Sends one datagram back."""

    def handle(self) -> None:
        """One datagram."""
        data, endpoint = self.request
        with contextlib.suppress(OSError):
            endpoint.sendto(data, self.client_address)


class DatagramServer(socketserver.UDPServer):
    """Both families on one port."""

    address_family = socket.AF_INET6
    max_packet_size = 65535


def name_handler(name: str) -> type[http.server.BaseHTTPRequestHandler]:
    """A handler that answers every GET with the name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = IDLE_TIMEOUT_S

        def do_GET(self) -> None:
            """Answer with the name, and close."""
            body = f"{name}\n".encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler


def main() -> None:
    """Serve until the process that started this one is gone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    servers: list[socketserver.BaseServer] = [
        _DualStack(("::", ECHO_PORT), Echo),
        _DualStack(("::", GREETING_PORT), greeting_handler(arguments.name)),
        _DualStack(("::", NAME_PORT), name_handler(arguments.name)),
        DatagramServer(("::", ECHO_PORT), DatagramEcho),
    ]
    started_by = os.getppid()
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(READY, flush=True)
    while os.getppid() == started_by:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
