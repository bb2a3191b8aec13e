"""Who asks, and which services it may reach: from the sessions and the policy in force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from zgate_gateway.admission import IpAddress
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.registry import SessionRecord

#: Answers that are remembered. More are worked out anew.
_MAX_REMEMBERED = 16_384
#: How long an answer is good for where rules hold for a time; else as long as the policy.
_REMEMBERED_S = 1.0


class _Remembered(NamedTuple):
    addresses: Sequence[IpAddress]
    until_s: float


class Access:
    """What each client may ask for.

    With ten thousand rules an answer takes some milliseconds to work out, so it is remembered: for
    one session, one service, and the policy set in force.
    """

    def __init__(
        self,
        *,
        session_at: Callable[[IpAddress], SessionRecord | None],
        policy_set: Callable[[], PolicySet],
        time_s: Callable[[], float],
    ) -> None:
        self.session_at = session_at
        self._policy_set = policy_set
        self._time_s = time_s
        self._known_under: PolicySet | None = None
        self._known: dict[tuple[str, str], _Remembered] = {}

    def addresses(self, session: SessionRecord, service: str) -> Sequence[IpAddress]:
        """The virtual IPs of a service, if the client may reach it; else none."""
        policy_set, now_s = self._policy_set(), self._time_s()
        if service not in policy_set.services:
            return ()  # and nothing is remembered: there are many names
        if policy_set is not self._known_under or len(self._known) >= _MAX_REMEMBERED:
            self._known_under, self._known = policy_set, {}
        key = session.session_id, service
        found = self._known.get(key)
        if found is None or found.until_s <= now_s:
            until_s = now_s + _REMEMBERED_S if policy_set.is_temporary else float("inf")
            found = self._known[key] = _Remembered(
                self._work_out(session, service, policy_set), until_s
            )
        return found.addresses

    def _work_out(
        self, session: SessionRecord, service: str, policy_set: PolicySet
    ) -> Sequence[IpAddress]:
        identity = session.identity
        may_reach = policy_set.may_reach(
            identity.name,
            identity.groups,
            service,
            reaches=identity.reaches,
            at=datetime.now(UTC),
        )
        return policy_set.services[service] if may_reach else ()
