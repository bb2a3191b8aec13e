"""What a client says that it offers, on its way to the supervisor, who answers.

A connector says it together with its request. Until that is granted the last word of each kind is
kept: nobody is asked about the offers of a session that there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import summarize_address_range
from itertools import islice

from zgate_protocol.icmp import TokenBucket
from zgate_protocol.ip_range import ALL_PROTOCOLS, IpNetwork, IpRange
from zgate_protocol.service_capsule import OfferState, Register

from zgate_gateway.admission import Registrar

# A connector says how its services do each second and at every change.
_WORDS_PER_S = 10
_WORDS_BURST = 50
_MAX_NETWORKS = 256


class TooMuchOffered(Exception):
    """A peer says more than a session may; the text is the cause of its end."""


class OfferIntake:
    """The offers of one session. `clock` is that of the event loop, in seconds.

    Attributes:
        beats: whether the client is one that is to be heard each second.
    """

    def __init__(self, registrar: Registrar, clock: Callable[[], float]) -> None:
        self._registrar = registrar
        self._clock = clock
        self._bucket = TokenBucket(rate_per_s=_WORDS_PER_S, burst=_WORDS_BURST)
        self._session_id: str | None = None
        self._register: Register | None = None
        self._networks: tuple[str, ...] | None = None
        self._state: OfferState | None = None
        self.beats = False

    def begin(self, session_id: str) -> None:
        """The session is granted."""
        self._session_id = session_id
        if self._register is not None:
            self._registrar.offer_services(session_id, self._register)
        if self._networks is not None:
            self._registrar.offer_routes(session_id, self._networks)
        if self._state is not None:
            self._registrar.offer_states(session_id, self._state.statuses)
        self._register = self._state = None

    def services(self, register: Register) -> None:
        """The full list of what is offered.

        Raises:
            TooMuchOffered: too often.
        """
        self._count()
        self.beats = True
        if self._session_id is None:
            self._register = register
        else:
            self._registrar.offer_services(self._session_id, register)

    def state(self, state: OfferState) -> None:
        """How the services do.

        Raises:
            TooMuchOffered: too often.
        """
        self._count()
        self.beats = True
        if self._session_id is None:
            self._state = state
        else:
            self._registrar.offer_states(self._session_id, state.statuses)

    def routes(self, ranges: Sequence[IpRange]) -> None:
        """The full list of the networks behind the client.

        A range for one protocol alone is none that packets could be sent to, and is left out.

        Raises:
            TooMuchOffered: too often, or too many.
        """
        self._count()
        # One range may be hundreds of networks: no more are made than are taken.
        found = islice(_networks_of(ranges), _MAX_NETWORKS + 1)
        networks = tuple(str(network) for network in found)
        if len(networks) > _MAX_NETWORKS:
            raise TooMuchOffered(f"the client leads to more than {_MAX_NETWORKS} networks")
        # Nobody is told of nothing, but of its end.
        if networks == (self._networks if self.beats else self._networks or ()):
            return
        self._networks = networks
        if self._session_id is not None:
            self._registrar.offer_routes(self._session_id, networks)

    def _count(self) -> None:
        if not self._bucket.allow(self._clock()):
            raise TooMuchOffered("the client speaks of its offers too often")


def _networks_of(ranges: Sequence[IpRange]) -> Iterator[IpNetwork]:
    for item in ranges:
        if item.ip_protocol == ALL_PROTOCOLS:
            yield from summarize_address_range(item.start, item.end)
