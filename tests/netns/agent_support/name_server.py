"""A name server of one name, in a namespace."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from zgate_lab.lab import Namespace


class NameServer(threading.Thread):
    """Answers one name, refuses others; a thread, as its socket is the namespace's."""

    def __init__(self, namespace: Namespace, address: str, name: str, answer: str) -> None:
        super().__init__(name=f"dns {address}")
        self._namespace, self._name, self._answer = namespace, name, answer
        with namespace.entered():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.asked: list[str] = []

    def run(self) -> None:
        """Answer until an empty datagram comes."""
        while True:
            data, peer = self.socket.recvfrom(4096)
            if not data:
                return
            self.socket.sendto(self._reply(dns.message.from_wire(data)).to_wire(), peer)

    def _reply(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        if name != self._name:
            answer.set_rcode(dns.rcode.REFUSED)
        elif question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(question.name, 5, "IN", "A", self._answer))
        return answer

    def stop(self) -> None:
        """End the thread."""
        with self._namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.socket.getsockname())
        self.join()
        self.socket.close()


@contextlib.contextmanager
def serving(server: NameServer) -> Iterator[NameServer]:
    """Let it answer for the length of the block."""
    server.start()
    try:
        yield server
    finally:
        server.stop()
