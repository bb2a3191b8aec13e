"""How much one peer can make this end hold."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session; a peer beyond one has its stream aborted with EXCESSIVE_LOAD."""

    max_addresses: int = 64
    """Entries of one ADDRESS_ASSIGN or ADDRESS_REQUEST capsule."""
    max_routes: int = 1024
    """Entries of one ROUTE_ADVERTISEMENT capsule."""
    max_address_requests: int = 256
    """Request IDs in the life of a session: all are remembered, for none may come twice."""
    max_datagram_capsule_bytes: int = 9216
    """A longer DATAGRAM capsule is skipped unread: no tunnel of ours carries such a packet."""
    max_services: int = 256
    """Services of one REGISTER or OFFER_STATE capsule."""
    max_ports_per_service: int = 64
    """Port ranges of one service in a REGISTER capsule."""
    max_dns_entries: int = 16
    """Entries of each list in a DNS_ASSIGN capsule."""
    max_service_capsule_bytes: int = 262144
    """Length of one capsule about services; it is held whole until it is complete."""
    max_cached_pairs: int = 512
    """Source and destination pairs, per direction, that were judged and may pass."""


DEFAULT_LIMITS = Limits()
