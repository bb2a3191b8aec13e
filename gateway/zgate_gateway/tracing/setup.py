"""What is noted of one session's set-up, from the client's first packet to its first IP packet.

    begun      the first Initial that was answered with more than a Retry
    verified   its certificate
    proved     the handshake is complete
    requested  a CONNECT-IP request, or the first registration (ztna-v1)
    applied    the supervisor is asked; it tells how long leases and kernel took
    answered   it has decided
    responded  200 is written
    packet     the first IP packet from the client went to the TUN

Times are the event loop's (`time.monotonic`), in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from zgate_gateway.admission import Admission, Refusal


class Mark(StrEnum):
    """Moments, see the module's text; the supervisor's three are the bounds of its two parts."""

    BEGUN = "begun"
    VERIFY_BEGUN = "verify_begun"
    VERIFIED = "verified"
    PROVED = "proved"
    REQUESTED = "requested"
    APPLIED = "applied"
    ADMIT_BEGUN = "admit_begun"
    LEASED = "leased"
    ADMITTED = "admitted"
    ANSWERED = "answered"
    RESPONDED = "responded"
    PACKET = "packet"


class Result(StrEnum):
    """What became of it."""

    ESTABLISHED = "established"
    REFUSED = "refused"
    CERTIFICATE_REFUSED = "certificate_refused"
    FAILED = "failed"


class SetupTrace:
    """One set-up. `on_over` is called once, when there is nothing more to note.

    Attributes:
        wall_s: add this to a mark, and it is the time of day.
        client: who it is, once proved.
        peer: the outer address and port, when it began.
        reason: why it was refused or failed.
    """

    __slots__ = (
        "client",
        "dialect",
        "is_over",
        "marks",
        "on_over",
        "peer",
        "reason",
        "result",
        "session_id",
        "status",
        "wall_s",
    )

    def __init__(self, peer: str, on_over: Callable[[SetupTrace], None]) -> None:
        now_s = time.monotonic()
        self.wall_s = time.time() - now_s
        self.marks: dict[Mark, float] = {Mark.BEGUN: now_s}
        self.peer = peer
        self.on_over = on_over
        self.client = ""
        self.dialect = ""
        self.session_id = ""
        self.result: Result | None = None
        self.reason = ""
        self.status = 0
        self.is_over = False

    def mark(self, moment: Mark) -> None:
        """This happens now."""
        if not self.is_over:
            self.marks[moment] = time.monotonic()

    def verified(self, began_s: float) -> None:
        """The certificate was looked at since then."""
        self.marks[Mark.VERIFY_BEGUN] = began_s
        self.mark(Mark.VERIFIED)

    def proved(self, client: str, dialect: str) -> None:
        """The handshake is complete; the dialect may turn out to be another."""
        self.client, self.dialect = client, dialect
        self.mark(Mark.PROVED)

    def answered(self, outcome: Admission | Refusal) -> None:
        """The supervisor has decided."""
        self.mark(Mark.ANSWERED)
        if isinstance(outcome, Admission):
            self.session_id = outcome.session_id
            moments = (Mark.ADMIT_BEGUN, Mark.LEASED, Mark.ADMITTED)
            self.marks.update(zip(moments, outcome.timing_s, strict=False))

    def established(self) -> None:
        """The client is told; what is missing is its first packet."""
        self.mark(Mark.RESPONDED)
        self.result = Result.ESTABLISHED

    def first_packet(self, at_s: float | None = None) -> None:
        """The client's first IP packet came, now or then: nothing is missing."""
        if not self.is_over and self.result is Result.ESTABLISHED:
            self.marks[Mark.PACKET] = time.monotonic() if at_s is None else at_s
            self.end()

    def refused(self, result: Result, reason: str, status: int = 0) -> None:
        """The certificate, or the request, is not taken. A session that is up stays up."""
        if self.result is None:
            self.result, self.reason, self.status = result, reason, status
            self.mark(Mark.RESPONDED)
            self.end()

    def ended(self, reason: str) -> None:
        """The connection is gone."""
        if self.result is None:
            self.result, self.reason = Result.FAILED, reason
        self.end()

    def end(self) -> None:
        """Nothing more is waited for."""
        if not self.is_over:
            self.is_over = True
            self.on_over(self)
