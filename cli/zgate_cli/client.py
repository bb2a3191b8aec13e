"""The gateway's API as zgatectl calls it: HTTP over a Unix socket, answers as typed models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from zgate_gateway.api import schemas

from .errors import BadInput, CommandError, NotReachable

_Model = TypeVar("_Model", bound=BaseModel)

_TIMEOUT = httpx.Timeout(30.0, connect=3.0)
#: A change reads, compiles and loads the whole policy; a diff compares all of it.
_POLICY_TIMEOUT = httpx.Timeout(300.0, connect=3.0)
_START = "start zgate-gateway, or name its socket with --socket"


class GatewayClient:
    """A connection to one gateway. Every method raises :class:`CommandError` and nothing else."""

    def __init__(self, socket_path: Path, *, timeout: httpx.Timeout = _TIMEOUT) -> None:
        self._socket_path = socket_path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://gateway",
            timeout=timeout,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def status(self) -> schemas.Status:
        """The gateway at a glance."""
        return self._ask(schemas.Status, "GET", "/v1/status")

    def sessions(self, query: schemas.SessionQuery | None = None) -> schemas.SessionList:
        """The sessions that are up, or those of them that are asked for."""
        params = (query or schemas.SessionQuery()).model_dump(mode="json", exclude_defaults=True)
        return self._ask(schemas.SessionList, "GET", "/v1/sessions", params=params)

    def clients(self) -> schemas.ClientList:
        """Every client that the gateway knows."""
        return self._ask(schemas.ClientList, "GET", "/v1/clients")

    def services(self) -> schemas.ServiceList:
        """The services that the gateway knows."""
        return self._ask(schemas.ServiceList, "GET", "/v1/services")

    def connectors(self) -> schemas.ConnectorList:
        """Who offers something, and who is drained."""
        return self._ask(schemas.ConnectorList, "GET", "/v1/connectors")

    def drain_gateway(self, request: schemas.GatewayDrainRequest) -> schemas.GatewayDrain:
        """Have the clients go elsewhere, or come again."""
        return self._ask(schemas.GatewayDrain, "POST", "/v1/drain", json=request.model_dump())

    def drain(self, connector: str, request: schemas.DrainRequest) -> schemas.Drain:
        """Give a connector no new flows, or new ones again."""
        path = f"/v1/connectors/{_segment(connector)}/drain"
        return self._ask(schemas.Drain, "POST", path, json=request.model_dump())

    def log_level(self) -> schemas.LogLevelState:
        """How much the gateway logs."""
        return self._ask(schemas.LogLevelState, "GET", "/v1/log-level")

    def set_log_level(self, request: schemas.LogLevelRequest) -> schemas.LogLevelState:
        """Log more or less from now on."""
        body = request.model_dump(mode="json")
        return self._ask(schemas.LogLevelState, "PUT", "/v1/log-level", json=body)

    def policy(self) -> schemas.PolicyView:
        """The policy in force."""
        return self._ask(schemas.PolicyView, "GET", "/v1/policy")

    def reload_policy(self) -> schemas.PolicyReload:
        """Load the policy file again."""
        return self._ask(schemas.PolicyReload, "POST", "/v1/policy/reload", timeout=_POLICY_TIMEOUT)

    def diff_policy(self, request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        """Say which flows a policy would change."""
        return self._ask(
            schemas.PolicyDiff,
            "POST",
            "/v1/policy/diff",
            json=request.model_dump(),
            timeout=_POLICY_TIMEOUT,
        )

    def apply_policy(self, request: schemas.PolicyApplyRequest) -> schemas.PolicyReload:
        """Put a policy in force."""
        return self._ask(
            schemas.PolicyReload,
            "POST",
            "/v1/policy/apply",
            json=request.model_dump(),
            timeout=_POLICY_TIMEOUT,
        )

    def policy_history(self, limit: int) -> schemas.PolicyHistory:
        """The newest revisions."""
        return self._ask(
            schemas.PolicyHistory, "GET", "/v1/policy/history", params={"limit": limit}
        )

    def rollback_policy(self, request: schemas.PolicyRollbackRequest) -> schemas.PolicyReload:
        """Put an earlier revision in force."""
        return self._ask(
            schemas.PolicyReload,
            "POST",
            "/v1/policy/rollback",
            json=request.model_dump(),
            timeout=_POLICY_TIMEOUT,
        )

    def kick(self, client: str, request: schemas.KickRequest) -> schemas.Kick:
        """Close a client's sessions."""
        path = f"/v1/sessions/{_segment(client)}/kick"
        return self._ask(schemas.Kick, "POST", path, json=request.model_dump())

    def ping(self, client: str) -> schemas.Ping:
        """Measure the round trip to a client once."""
        return self._ask(schemas.Ping, "POST", f"/v1/sessions/{_segment(client)}/ping")

    def metrics(self) -> str:
        """The metrics, as Prometheus reads them."""
        try:
            response = self._http.get("/metrics")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise self._refused(response)
        return response.text

    def why(self, query: schemas.WhyQuery) -> schemas.Why:
        """Ask for the verdict on one packet."""
        params = query.model_dump(mode="json", exclude_none=True)
        return self._ask(schemas.Why, "GET", "/v1/why", params=params)

    def flows(self, query: schemas.FlowQuery) -> schemas.FlowList:
        """Open flows, or the last denials."""
        params = query.model_dump(mode="json", exclude_none=True)
        return self._ask(schemas.FlowList, "GET", "/v1/flows", params=params)

    def follow_flows(self, query: schemas.FlowEventQuery) -> Iterator[schemas.FlowNews]:
        """New flows and denials as they happen; raises :class:`NotReachable` when they end."""
        params = query.model_dump(mode="json", exclude_none=True)
        # The gateway says something every few seconds, if only an empty line.
        options: dict[str, Any] = {"params": params, "timeout": _TIMEOUT}
        try:
            with self._http.stream("GET", "/v1/flows/events", **options) as response:
                if response.is_error:
                    response.read()
                    raise self._refused(response)
                for line in _lines(response.iter_raw()):
                    yield schemas.FlowNews.model_validate_json(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except ValidationError as error:
            raise self._foreign() from error
        raise NotReachable(
            f"the gateway on {self._socket_path} has ended", "follow again when it is back"
        )

    def _ask(self, model: type[_Model], method: str, path: str, **options: Any) -> _Model:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise self._refused(response)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise self._foreign() from error

    def _refused(self, response: httpx.Response) -> CommandError:
        try:
            problem = schemas.Problem.model_validate_json(response.content)
        except ValidationError:
            return self._foreign()
        kind = BadInput if response.status_code in {400, 422} else CommandError
        return kind(problem.cause, problem.cure)

    def _foreign(self) -> CommandError:
        return CommandError(
            f"the answer on {self._socket_path} is not one that this zgatectl understands",
            "install the same version of zgatectl and gateway, and check --socket",
        )

    def _unreachable(self, error: httpx.HTTPError) -> CommandError:
        path = self._socket_path
        if isinstance(error, httpx.TimeoutException):
            cause, cure = f"the gateway on {path} does not answer", "see its log; it may be stuck"
        elif isinstance(error, httpx.NetworkError):
            cause, cure = _explain(_os_error(error), path)
        else:
            cause, cure = f"what answers on {path} is no zgate gateway", "check --socket"
        return NotReachable(cause, cure)


def _segment(name: str) -> str:
    """A name in a path. Dots are escaped, too: ``..`` must not be taken for a segment."""
    return quote(name, safe="").replace(".", "%2E")


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Split at newlines only, empty lines left out: JSON may hold what else counts as one."""
    waiting = b""
    for part in parts:
        *lines, waiting = (waiting + part).split(b"\n")
        yield from filter(None, lines)


def _explain(error: OSError | None, path: Path) -> tuple[str, str]:
    """Return cause and cure of a socket that cannot be used."""
    match error:
        case FileNotFoundError():
            return f"there is no socket {path}: the gateway is not running", _START
        case PermissionError():
            return f"permission denied on {path}", "use root, or an account of the group zgate"
        case ConnectionRefusedError():
            return f"nobody listens on {path}: the gateway is not running any more", _START
        case None:
            return f"the gateway on {path} closed the connection", "see its log, and try again"
        case _:
            return f"{path}: {error.strerror or error}", "check --socket"


def _os_error(error: BaseException | None) -> OSError | None:
    """Find what the operating system said behind the layers of the HTTP client."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None
