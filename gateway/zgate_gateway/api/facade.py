"""What the daemon offers to the administration API.

The API knows the gateway only through :class:`GatewayFacade`; tests put a fake behind it. Methods
that read are plain functions and must not block (they take a snapshot); methods that change
something are coroutines and return when the change is in force.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from zgate_gateway.metrics.snapshot import MetricsSnapshot

from . import schemas


class FacadeError(Exception):
    """A request that cannot be answered: HTTP status, what is wrong, and what helps."""

    status = 500
    title = "Internal error"

    def __init__(self, cause: str, cure: str) -> None:
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


class UnknownClient(FacadeError):
    """No such client, or it has no session and the request needs one."""

    status = 404
    title = "Unknown client"


class UnknownConnector(FacadeError):
    """No such connector, and none of that name was drained."""

    status = 404
    title = "Unknown connector"


class UnknownService(FacadeError):
    """No such service."""

    status = 404
    title = "Unknown service"


class PolicyRefused(FacadeError):
    """The policy file cannot be loaded; the policy in force stays as it was."""

    status = 422
    title = "Policy refused"


class PolicyConflict(FacadeError):
    """The policy in force is another one than the request was made for."""

    status = 409
    title = "Policy changed meanwhile"


class UnknownPolicy(FacadeError):
    """No such revision, or its text is not kept."""

    status = 404
    title = "Unknown revision"


class NotDrained(FacadeError):
    """The gateway is not drained."""

    status = 409
    title = "Not drained"


class NotReady(FacadeError):
    """The gateway is starting or stopping."""

    status = 503
    title = "Gateway not ready"


class TooManyReaders(FacadeError):
    """As many follow the flows as may."""

    status = 503
    title = "Too many readers"


class OperationFailed(FacadeError):
    """The gateway tried and failed: the kernel or the store refused."""

    status = 500
    title = "Operation failed"


class GatewayFacade(Protocol):
    """The gateway as its administrators see it."""

    async def refresh(self) -> None:
        """Bring up to date what worker processes count: before the status."""

    def status(self) -> schemas.Status:
        """Return the gateway at a glance."""

    async def sessions(self, query: schemas.SessionQuery) -> schemas.SessionList:
        """Return the sessions that are asked for, in that order.

        A coroutine, though it changes nothing: workers are asked, and there may be thousands.
        """

    async def ping(self, client: str) -> schemas.Ping:
        """Ask a client's connection for a sign of life. Raises :class:`UnknownClient`."""

    def clients(self) -> list[schemas.Client]:
        """Return every client with a lease, a session or an entry in the policy."""

    def services(self) -> list[schemas.Service]:
        """Return the services that the gateway knows, by name."""

    def connectors(self) -> list[schemas.Connector]:
        """Return who offers something, and who is drained, by name."""

    async def drain_gateway(self, request: schemas.GatewayDrainRequest) -> schemas.GatewayDrain:
        """Have the clients go elsewhere, or come again.

        Raises :class:`NotReady`, :class:`NotDrained`.
        """

    async def drain(self, connector: str, request: schemas.DrainRequest) -> schemas.Drain:
        """Give a connector no new flows, or new ones again. Raises :class:`UnknownConnector`."""

    def log_level(self) -> schemas.LogLevelState:
        """Return how much is logged."""

    def set_log_level(self, request: schemas.LogLevelRequest) -> schemas.LogLevelState:
        """Log more or less from now on: nothing is waited for."""

    def policy(self) -> schemas.PolicyView:
        """Return the policy in force."""

    def why(self, query: schemas.WhyQuery) -> schemas.Why:
        """Ask compiler and kernel about one packet. Raises :class:`UnknownClient`."""

    @property
    def state(self) -> schemas.GatewayState:
        """Return where the daemon is in its life."""

    async def readiness(self) -> schemas.Probe:
        """Look whether new sessions find what they need; what is missing is named."""

    async def metrics(self) -> MetricsSnapshot:
        """Return the numbers behind ``/metrics``. Raises :class:`OperationFailed`."""

    async def flows(self, query: schemas.FlowQuery) -> schemas.FlowList:
        """Return the open flows, or the last denials. Raises :class:`OperationFailed`.

        A coroutine, though it changes nothing: the table may be large, and is read in parts.
        """

    def follow_flows(self, query: schemas.FlowEventQuery) -> AsyncIterator[list[schemas.FlowNews]]:
        """Return new flows and denials as they happen; an empty list: nothing for a while.

        Raises :class:`TooManyReaders` and :class:`NotReady`, at once.
        """

    async def check_policy(self, request: schemas.PolicyCheckRequest) -> schemas.PolicyCheck:
        """Check a policy without loading it. A bad policy is an answer, not an error."""

    async def diff_policy(self, request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        """Compare a policy with the one in force. A bad policy is an answer, not an error.

        Raises :class:`UnknownPolicy`.
        """

    async def apply_policy(self, request: schemas.PolicyApplyRequest) -> schemas.PolicyReload:
        """Put a policy in force and into the policy file.

        Raises :class:`PolicyRefused`, :class:`PolicyConflict`, :class:`OperationFailed`.
        """

    async def policy_history(self, limit: int) -> schemas.PolicyHistory:
        """Return the newest revisions."""

    async def rollback_policy(self, request: schemas.PolicyRollbackRequest) -> schemas.PolicyReload:
        """Put the content of an earlier revision in force, under a new number.

        Raises as :meth:`apply_policy` does, and :class:`UnknownPolicy`.
        """

    async def reload_policy(self) -> schemas.PolicyReload:
        """Load the policy file again. Raises :class:`PolicyRefused`, :class:`OperationFailed`."""

    async def kick(self, client: str, reason: str) -> schemas.Kick:
        """Close a client's sessions, kernel entries included. Raises :class:`UnknownClient`."""
