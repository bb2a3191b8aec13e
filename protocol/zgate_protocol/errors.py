"""HTTP/3 error codes that this protocol uses, and the exceptions that carry them."""

from enum import IntEnum

from zgate_protocol.drop_reason import DropReason


class H3Error(IntEnum):
    """Error codes of RFC 9114 section 8.1 and RFC 9297 section 5.2."""

    DATAGRAM_ERROR = 0x33
    """An HTTP datagram that does not parse, or that its request has no use for."""
    NO_ERROR = 0x100
    """Nothing is wrong, and the stream or the connection ends."""
    INTERNAL_ERROR = 0x102
    """This end cannot go on."""
    FRAME_UNEXPECTED = 0x105
    """A frame that has no place here, such as trailers after CONNECT."""
    EXCESSIVE_LOAD = 0x107
    """The peer goes beyond a limit that bounds what it can make us hold or do."""
    SETTINGS_ERROR = 0x109
    """A setting with a value that does not exist."""
    REQUEST_REJECTED = 0x10B
    """The request was not looked at."""
    REQUEST_CANCELLED = 0x10C
    """The request is not wanted any more."""
    MESSAGE_ERROR = 0x10E
    """A malformed message; every malformed capsule is one (RFC 9297 section 3.3)."""


class StreamError(ValueError):
    """What the peer sent ends its own stream, and nothing else, with ``error_code``."""

    def __init__(self, error_code: H3Error, reason: str) -> None:
        super().__init__(reason)
        self.error_code = error_code
        self.reason = reason


class MalformedCapsule(StreamError):
    """A capsule that does not parse, breaks a rule, or goes beyond a limit."""

    def __init__(self, reason: str, error_code: H3Error = H3Error.MESSAGE_ERROR) -> None:
        super().__init__(error_code, reason)


class MalformedMessage(StreamError):
    """A header section that is no valid request or response (RFC 9114 section 4.1.2)."""

    def __init__(self, reason: str) -> None:
        super().__init__(H3Error.MESSAGE_ERROR, reason)


class ConnectionFailure(StreamError):
    """What the peer sent ends the whole HTTP/3 connection with ``error_code``."""


class PacketError(ValueError):
    """An IP packet that is not forwarded: a counted drop, never a protocol error."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class LocalError(RuntimeError):
    """This end asked for what the protocol does not allow now: a bug of the caller."""
