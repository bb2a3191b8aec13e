"""Why a packet was dropped: one numbering for Python, BPF C, metrics and the audit log.

``bpf/zgate_bpf/programs/include/zgate/drop_reason.h`` mirrors the kernel's half; a test compares
the two.
Numbers are part of the monitoring interface: they are never reused and never renumbered.
"""

from enum import IntEnum


class DropReason(IntEnum):
    """The reason of one drop; ``NONE`` (and only it) is false and means that the packet passed.

    Values are below 64, so that a counter array can be indexed by them: 1-31 are given by
    the kernel programs, 32-63 by userspace.
    """

    NONE = 0

    # Given by the BPF programs.
    NO_CLIENT = 1
    """The address belongs to no known client."""
    MALFORMED = 2
    """The headers do not parse."""
    UNKNOWN_NEXT_HEADER = 3
    """An IPv6 extension header that the program cannot walk."""
    FRAGMENT_WITHOUT_FIRST = 4
    """A later fragment whose first one was not seen, or was not allowed."""
    POLICY_RULE = 5
    """A deny rule matched."""
    POLICY_DEFAULT = 6
    """No rule matched, and the default action is deny."""
    UNSOLICITED = 7
    """Inbound, and neither a reply to an allowed flow nor an ICMP error about one."""
    LINK_LOCAL = 8
    """Link-local source or destination: never forwarded (RFC 9484 section 7.2)."""
    FLOW_TABLE_FULL = 9
    """A new flow found no place in the flow table."""
    NO_POLICY = 10
    """No policy is loaded."""
    INTERNAL = 11
    """A map or an entry that must exist does not."""
    NOT_IP = 12
    """Neither IPv4 nor IPv6."""
    SOURCE_SPOOFED = 13
    """The source address is not one of the client that the packet came from."""
    RATE_LIMITED = 14
    """More bytes than the client's bandwidth limit lets through."""
    NEW_FLOW_LIMITED = 15
    """More new flows in a second than the client's limit lets begin."""
    NO_BACKEND = 16
    """No connector that could take the flow offers the service now."""
    NOT_A_DESTINATION = 17
    """An address of a connector's offer, which only the gateway itself sends to."""

    # Given by userspace.
    BAD_VERSION = 32
    """The IP version is neither 4 nor 6."""
    BAD_LENGTH = 33
    """The length fields disagree with the number of bytes received."""
    SOURCE_NOT_ASSIGNED = 34
    """The sender does not hold the source address (RFC 9484 section 11, BCP 38)."""
    DESTINATION_NOT_ROUTED = 35
    """No advertised route holds the destination (RFC 9484 section 4.7.3)."""
    PROTOCOL_OUT_OF_SCOPE = 36
    """The route exists, but not for this IP protocol (RFC 9484 sections 4.6 and 4.7.3)."""
    TTL_EXPIRED = 37
    """The TTL or hop limit would reach zero (RFC 9484 section 7.2)."""
    TOO_BIG = 38
    """Larger than the tunnel's MTU (RFC 9484 sections 7.2.1 and 10.1)."""
    UNKNOWN_CONTEXT = 39
    """A context ID that was never registered (RFC 9484 section 6)."""
    UNKNOWN_STREAM = 40
    """A datagram for a stream that does not exist (RFC 9297 section 2.1)."""
    QUEUE_FULL = 41
    """A bounded queue was full."""
    NO_SESSION = 42
    """No session holds the destination, or the session is not established yet."""
    SESSION_CLOSED = 43
    """The session's stream is closed (RFC 9297 section 2.1)."""
    TUN_WRITE_FAILED = 44
    """The kernel did not take the packet."""
    BAD_DATAGRAM = 45
    """The HTTP datagram ends before its context ID does."""
    CONGESTED = 46
    """The congestion window was full for too long."""
    DESTINATION_NOT_ASSIGNED = 47
    """The receiving end of the tunnel does not hold the destination address."""
    LINK_LOCAL_PEER = 48
    """Link-local, for this end of the tunnel itself: to be answered, never forwarded."""
