"""Services, who offers them, and connectors."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from zgate_gateway.api.schemas.base import MAX_DRAIN_S, Answer, Request


class OfferState(StrEnum):
    """What becomes of flows to an offer. ``UP``: it takes new ones. ``KEEP``: it keeps those that
    it has. ``GONE``: they choose another.
    """

    UP = "up"
    KEEP = "keep"
    GONE = "gone"


class OfferHealth(StrEnum):
    """Whether a service's backend answers, as the connector says; ``UNKNOWN``: not said yet."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class ServiceOffer(Answer):
    """One connector's offer of one service; counts are the connector's own."""

    name: str = Field(description="the service")
    connector: str
    state: OfferState
    health: OfferHealth
    reason: str = Field("", description="why it is not healthy")
    offered_at: AwareDatetime
    changed_at: AwareDatetime = Field(description="since when state and health are these")
    ports: list[str] = Field(default_factory=list, description="tcp/104, udp/5000-5010")
    addresses: list[str] = Field(
        default_factory=list, description="that the connector serves it at; nobody else sees them"
    )
    open_flows: int = Field(0, ge=0)
    total_flows: int = Field(0, ge=0)
    bytes_up: int = Field(0, ge=0, description="to the backend")
    bytes_down: int = Field(0, ge=0)


class RouteOffer(Answer):
    """One connector's leading to one network."""

    network: str
    connector: str
    state: OfferState
    active: bool = Field(description="it leads there now; else it stands by")
    changed_at: AwareDatetime | None = Field(
        None, description="since when whoever leads there does"
    )


class RefusedOffer(Answer):
    """What a connector wants, and may not or cannot have."""

    kind: str = Field(description="service or route")
    name: str
    code: str = Field(description="not_authorized, invalid, no_address, overlap, limit, internal")
    text: str


class DrainState(Answer):
    """A connector that gets no new flows."""

    since: AwareDatetime
    deadline_at: AwareDatetime | None = Field(
        None, description="when it loses the flows that it has; null: never"
    )
    is_over: bool = Field(False, description="the deadline has passed")


class Service(Answer):
    """A service that the gateway knows by name."""

    name: str
    addresses: list[str] = Field(description="its virtual IPs, for good")
    dns_name: str | None = Field(None, description="null: its name is none that DNS knows")
    state: OfferState = Field(description="of the best offer; gone: nobody offers it now")
    offers: list[ServiceOffer] = Field(default_factory=list)


class ServiceList(Answer):
    """``GET /v1/services``."""

    services: list[Service]


class Connector(Answer):
    """A client that offers something, or that is drained and not connected."""

    name: str
    connected: bool
    session_id: str | None = None
    peer: str | None = None
    since: AwareDatetime | None = Field(None, description="when its session began")
    silent: bool = Field(False, description="nothing is heard of it, though it has a session")
    drain: DrainState | None = None
    services: list[ServiceOffer] = Field(default_factory=list)
    routes: list[RouteOffer] = Field(default_factory=list)
    refused: list[RefusedOffer] = Field(default_factory=list)
    open_flows: int = Field(0, ge=0)
    bytes_up: int = Field(0, ge=0)
    bytes_down: int = Field(0, ge=0)


class ConnectorList(Answer):
    """``GET /v1/connectors``."""

    connectors: list[Connector]


class Drain(Answer):
    """How a connector's drain goes (``POST /v1/connectors/{name}/drain``)."""

    connector: str
    connected: bool
    drain: DrainState | None = Field(description="null: it is drained no more")
    open_flows: int = Field(ge=0, description="flows that it has")


class DrainRequest(Request):
    """The body of ``POST /v1/connectors/{name}/drain``."""

    undo: bool = Field(False, description="give it new flows again")
    deadline_s: float | None = Field(
        None, ge=0, le=MAX_DRAIN_S, description="then it loses the flows that it has; null: never"
    )
