"""Why a session ends, in the words that both ends know: reason phrases of CONNECTION_CLOSE.

The phrase is for people first (RFC 9000 section 19.19); a client that knows these does better than
to wait as after a fault. Any other text means nothing in particular.
"""

from typing import Final

STOPPING: Final = "the gateway is shutting down"
"""It ends in good order, and mostly to begin again: dial soon."""
DRAINED: Final = "the gateway is drained"
"""The deadline of a drain is over: dial another gateway, or this one when it is back."""
REPLACED: Final = "replaced by a newer session of the same client"
"""Somebody else has come with the same identity: whoever comes back at once begins a fight."""
CONNECTION_LOST: Final = "the peer has lost the connection (stateless reset)"
"""Not said but concluded: the peer was started anew, and is there (RFC 9000 section 10.3)."""


def is_there_soon(reason: str) -> bool:
    """Say whether a gateway that ended a session so is there again in a moment."""
    return reason in (STOPPING, CONNECTION_LOST)
