"""HTTP/3 error codes that this protocol uses, and the exceptions that carry them."""

from enum import IntEnum


class H3Error(IntEnum):
    """Error codes of RFC 9114 section 8.1 and RFC 9297 section 5.2."""

    DATAGRAM_ERROR = 0x33
    """An HTTP datagram that does not parse, or that its request has no use for."""
    NO_ERROR = 0x100
    FRAME_UNEXPECTED = 0x105
    EXCESSIVE_LOAD = 0x107
    """The peer goes beyond a limit that bounds what it can make us hold or do."""
    SETTINGS_ERROR = 0x109
    REQUEST_REJECTED = 0x10B
    REQUEST_CANCELLED = 0x10C
    MESSAGE_ERROR = 0x10E
    """A malformed message; every malformed capsule is one (RFC 9297 section 3.3)."""
    CONNECT_ERROR = 0x10F


class StreamError(ValueError):
    """What the peer sent ends its own stream, and nothing else, with ``error_code``."""

    def __init__(self, error_code: H3Error, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


class ConnectionFailure(StreamError):
    """What the peer sent ends the whole HTTP/3 connection with ``error_code``."""


class LocalError(RuntimeError):
    """This end asked for something that the protocol does not allow now: a bug of the caller."""
