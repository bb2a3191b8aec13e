"""What a connector and the process in its chamber say to each other.

One JSON object per message on a SOCK_SEQPACKET socket pair: a question `{"op": ..., ...}`, then one
answer, `{}` with what was asked for, or `{"error": text}`; sockets come as SCM_RIGHTS.
"""

import json
import socket
from typing import Any

MAX_MESSAGE_BYTES = 256 * 1024
MAX_DESCRIPTORS = 4

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One message as bytes."""
    return json.dumps(message).encode()


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """One message and its descriptors; None when the other end is gone.

    Raises:
        OSError: BlockingIOError when there is none yet.
        ValueError: what came is no message.
    """
    data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
    if not data:
        return None
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message, descriptors
