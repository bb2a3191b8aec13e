"""Connection IDs that say whose they are, and the tokens that end what nobody knows any more.

Every connection ID that a server issues is 8 bytes:

    0       owner XOR mask       the worker process that holds the connection
    1-7     random

The mask is a keyed function of the random bytes, so that two IDs of one connection share nothing
that an observer could compare (RFC 9000 section 5.1); `programs/steering` in zgate_bpf computes
the same in the kernel. It hides a number below 16 and is no encryption: see docs/adr/0015.

A stateless reset token (RFC 9000 section 10.3) is an HMAC of the connection ID under a key that
all workers share and that survives them: whichever process finds that it does not know a
connection can end it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field

from zgate_protocol.icmp import TokenBucket

CONNECTION_ID_BYTES = 8
SECRET_BYTES = 32
RESET_TOKEN_BYTES = 16
MAX_OWNERS = 256
#: RFC 9000 section 10.3: 5 bytes that look like a short header, and the token.
MIN_RESET_BYTES = 5 + RESET_TOKEN_BYTES
#: What answers every longer packet: no smaller packet of a connection exists than this.
_MAX_RESET_BYTES = 42
_RANDOM_BITS = 56
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
_WORD_MASK = (1 << 64) - 1


def _derive(secret: bytes, label: str) -> bytes:
    return hmac.digest(secret, b"zgate " + label.encode(), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class OwnerMask:
    """The keyed function: 64-bit multiply and add, the top byte of it."""

    factor: int
    offset: int

    @classmethod
    def derive(cls, secret: bytes) -> OwnerMask:
        """The mask that belongs to a secret."""
        material = _derive(secret, "owner mask")
        return cls(int.from_bytes(material[:8]) | 1, int.from_bytes(material[8:16]))

    def apply(self, first: int, rest: int) -> int:
        """The other one of owner and first byte, given the 7 random bytes as a number."""
        return first ^ ((rest * self.factor + self.offset) & _WORD_MASK) >> _RANDOM_BITS


@dataclass(slots=True)
class ConnectionIds:
    """Issues connection IDs in the name of `owner`, one of `owners`."""

    secret: bytes = field(default_factory=lambda: os.urandom(SECRET_BYTES), repr=False)
    owner: int = 0
    owners: int = 1
    mask: OwnerMask = field(init=False, repr=False)
    _reset_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES or not 0 <= self.owner < self.owners <= MAX_OWNERS:
            raise ValueError(f"expected {SECRET_BYTES} secret bytes and an owner out of {self}")
        self.mask = OwnerMask.derive(self.secret)
        self._reset_key = _derive(self.secret, "stateless reset")

    def issue(self) -> bytes:
        """A fresh connection ID of this owner."""
        rest = os.urandom(CONNECTION_ID_BYTES - 1)
        return bytes((self.mask.apply(self.owner, int.from_bytes(rest)),)) + rest

    def owner_of(self, connection_id: bytes) -> int | None:
        """Whose connection ID it would be; None: nobody here has issued it."""
        if len(connection_id) < CONNECTION_ID_BYTES:
            return None
        word = int.from_bytes(connection_id[:CONNECTION_ID_BYTES])
        owner = self.mask.apply(word >> _RANDOM_BITS, word & _RANDOM_MASK)
        return owner if owner < self.owners else None

    def reset_token(self, connection_id: bytes) -> bytes:
        """The stateless reset token of a connection ID, the same in every process."""
        return hmac.digest(self._reset_key, connection_id, hashlib.sha256)[:RESET_TOKEN_BYTES]


class StatelessResets:
    """Answers packets of connections that nobody knows, not too often (RFC 9000 section 10.3).

    Attributes:
        sent: how many answers were made.
    """

    def __init__(self, ids: ConnectionIds, *, per_s: int = 500) -> None:
        self._ids = ids
        self._bucket = TokenBucket(rate_per_s=per_s, burst=per_s)
        self.sent = 0

    def answer(self, packet: bytes, now: float) -> bytes | None:
        """The stateless reset for a packet with a short header; None: no answer.

        Smaller than the packet, so that two ends without state fall silent (section 10.3.3).
        Never for a connection ID of another worker, which may well know the connection: the
        answer would give its token to whoever manages to misdirect a packet (section 21.11).
        """
        connection_id = packet[1 : 1 + CONNECTION_ID_BYTES]
        size = min(len(packet) - 1, _MAX_RESET_BYTES)
        if size < MIN_RESET_BYTES or packet[0] & 0xC0 != 0x40:
            return None
        if self._ids.owner_of(connection_id) not in (None, self._ids.owner):
            return None
        if not self._bucket.allow(now):
            return None
        self.sent += 1
        return self.make(connection_id, size)

    def make(self, connection_id: bytes, size: int = _MAX_RESET_BYTES) -> bytes:
        """The stateless reset that ends the connection of this ID."""
        head = bytearray(os.urandom(size - RESET_TOKEN_BYTES))
        head[0] = 0x40 | head[0] & 0x3F
        return bytes(head) + self._ids.reset_token(connection_id)


def ends_with_token(packet: bytes, token: bytes) -> bool:
    """Whether a packet is the stateless reset that a token announced (RFC 9000 section 10.3.1)."""
    return (
        len(token) == RESET_TOKEN_BYTES
        and len(packet) >= MIN_RESET_BYTES
        and hmac.compare_digest(packet[-RESET_TOKEN_BYTES:], token)
    )
