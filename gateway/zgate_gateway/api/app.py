"""The routes. Each one asks the facade and hands back what it said; nothing is decided here.

Two applications: :func:`create_app` with everything, for the Unix socket, and
:func:`create_probe_app` with health, readiness and metrics only, for a local TCP port. Every error
is ``application/problem+json`` (RFC 9457) with a cause and a cure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from zgate_control.store import StoreError

from zgate_gateway.metrics.text import render

from . import schemas
from .facade import FacadeError, GatewayFacade

#: JSON may need several bytes for a character of the policy; whoever escapes them all is refused.
MAX_BODY_BYTES = schemas.MAX_POLICY_CHARS * 2

_PROBLEM = "application/problem+json"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {"model": schemas.Problem, "description": "cause and cure of the error"}
}


def create_app(facade: GatewayFacade) -> FastAPI:
    """Return the administration API. Its schema is at ``/openapi.json``."""
    app = _bare_app("zgate gateway")
    app.include_router(_probe_routes(facade))
    app.include_router(_read_routes(facade))
    app.include_router(_change_routes(facade))
    return app


def create_probe_app(facade: GatewayFacade) -> FastAPI:
    """Return health, readiness and metrics: what may be read by whoever reaches a TCP port."""
    app = _bare_app("zgate gateway probes")
    app.include_router(_probe_routes(facade))
    return app


def _bare_app(title: str) -> FastAPI:
    # The interactive pages load scripts from a CDN: an appliance offers the schema alone.
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, responses=_PROBLEMS)
    app.add_middleware(_BodyLimit, limit_bytes=MAX_BODY_BYTES)
    app.add_exception_handler(FacadeError, _on_facade_error)
    app.add_exception_handler(StoreError, _on_store_error)
    app.add_exception_handler(RequestValidationError, _on_bad_request)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


# --- routes ---------------------------------------------------------------------------------------
# All are coroutines, even where nothing is awaited: a plain function would run in a thread, and the
# daemon's state belongs to its event loop.


def _probe_routes(facade: GatewayFacade) -> APIRouter:
    router = APIRouter(tags=["probes"])

    @router.get("/health")
    async def health() -> schemas.Probe:
        """The process answers, whatever its state."""
        return schemas.Probe(ok=True, state=facade.state)

    @router.get("/ready", responses={503: {"model": schemas.Probe}})
    async def ready(response: Response) -> schemas.Probe:
        """New sessions are taken; 503 while they are not, with the reasons."""
        probe = await facade.readiness()
        if not probe.ok:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return probe

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Prometheus text or OpenMetrics, as the scraper accepts."""
        snapshot = await facade.metrics()
        accept = request.headers.get("accept", "")
        text, content_type = await asyncio.to_thread(render, snapshot, accept)
        return Response(text, media_type=content_type)

    return router


def _read_routes(facade: GatewayFacade) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/status")
    async def status() -> schemas.Status:
        """The gateway at a glance."""
        await facade.refresh()
        return facade.status()

    @router.get("/sessions")
    async def sessions(query: Annotated[schemas.SessionQuery, Query()]) -> schemas.SessionList:
        """The sessions that are up: all, by client, unless the question says which."""
        return await facade.sessions(query)

    @router.get("/clients")
    async def clients() -> schemas.ClientList:
        """Every client that the gateway knows, by name."""
        return schemas.ClientList(clients=sorted(facade.clients(), key=lambda one: one.name))

    @router.get("/services")
    async def services() -> schemas.ServiceList:
        """The services that the gateway knows, and who offers them."""
        return schemas.ServiceList(services=facade.services())

    @router.get("/connectors")
    async def connectors() -> schemas.ConnectorList:
        """Who offers services or leads to networks, and how they do."""
        return schemas.ConnectorList(connectors=facade.connectors())

    @router.get("/policy")
    async def policy() -> schemas.PolicyView:
        """The policy in force, rule by rule."""
        return facade.policy()

    @router.get("/policy/history")
    async def policy_history(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> schemas.PolicyHistory:
        """The revisions that were in force, the newest first."""
        return await facade.policy_history(limit)

    @router.get("/log-level")
    async def log_level() -> schemas.LogLevelState:
        """How much the gateway logs."""
        return facade.log_level()

    @router.get("/why")
    async def why(query: Annotated[schemas.WhyQuery, Query()]) -> schemas.Why:
        """Whether a client's packet would pass, by which rule, and whether the kernel agrees."""
        return facade.why(query)

    @router.get("/flows")
    async def flows(query: Annotated[schemas.FlowQuery, Query()]) -> schemas.FlowList:
        """Open flows, or with ``denied`` the last denials; newest first."""
        return await facade.flows(query)

    @router.get(
        "/flows/events", response_class=_JsonLines, responses={200: {"model": schemas.FlowNews}}
    )
    async def flow_events(query: Annotated[schemas.FlowEventQuery, Query()]) -> Response:
        """New flows and denials as they happen: a JSON object a line, empty lines in silence.

        It ends when the gateway stops.
        """
        return _JsonLines(_lines(facade.follow_flows(query)))

    return router


class _JsonLines(StreamingResponse):
    media_type = "application/x-ndjson"


async def _lines(batches: AsyncIterator[list[schemas.FlowNews]]) -> AsyncIterator[bytes]:
    async for batch in batches:
        lines = [news.model_dump_json(exclude_none=True) for news in batch]
        yield "\n".join([*lines, ""]).encode() if lines else b"\n"


def _change_routes(facade: GatewayFacade) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/policy/check")
    async def check_policy(request: schemas.PolicyCheckRequest) -> schemas.PolicyCheck:
        """Check a policy without loading it."""
        return await facade.check_policy(request)

    @router.post("/policy/diff")
    async def diff_policy(request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        """Say which flows a policy would change, compared with the one in force."""
        return await facade.diff_policy(request)

    @router.post("/policy/apply")
    async def apply_policy(request: schemas.PolicyApplyRequest) -> schemas.PolicyReload:
        """Put a policy in force and into the policy file. If it is refused, nothing changes."""
        return await facade.apply_policy(request)

    @router.post("/policy/rollback")
    async def rollback_policy(request: schemas.PolicyRollbackRequest) -> schemas.PolicyReload:
        """Put an earlier revision's content in force, under a new number."""
        return await facade.rollback_policy(request)

    @router.post("/policy/reload")
    async def reload_policy() -> schemas.PolicyReload:
        """Load the policy file again. If it is refused, the policy in force stays."""
        return await facade.reload_policy()

    @router.put("/log-level")
    async def set_log_level(request: schemas.LogLevelRequest) -> schemas.LogLevelState:
        """Log more or less from now on, for a while or until SIGHUP."""
        return facade.set_log_level(request)

    @router.post("/drain")
    async def drain_gateway(request: schemas.GatewayDrainRequest) -> schemas.GatewayDrain:
        """Take no new session and have the clients go elsewhere; with ``undo``, take them again."""
        return await facade.drain_gateway(request)

    @router.post("/connectors/{connector:path}/drain")
    async def drain(
        connector: Annotated[schemas.ClientName, Path()], request: schemas.DrainRequest
    ) -> schemas.Drain:
        """Give a connector no new flows; with ``undo``, give it new ones again."""
        return await facade.drain(connector, request)

    # A name may hold a slash, so it takes the path up to the last part.
    @router.post("/sessions/{client:path}/kick")
    async def kick(
        client: Annotated[schemas.ClientName, Path()], request: schemas.KickRequest
    ) -> schemas.Kick:
        """Close a client's sessions. Its lease stays, and it may connect again."""
        return await facade.kick(client, request.reason)

    @router.post("/sessions/{client:path}/ping")
    async def ping(client: Annotated[schemas.ClientName, Path()]) -> schemas.Ping:
        """Measure the round trip to a client: a QUIC PING on its session's connection."""
        return await facade.ping(client)

    return router


# --- errors ---------------------------------------------------------------------------------------


def _problem(status: int, title: str, cause: str, cure: str) -> JSONResponse:
    problem = schemas.Problem(title=title, status=status, cause=cause, cure=cure)
    return JSONResponse(problem.model_dump(), status_code=status, media_type=_PROBLEM)


async def _on_facade_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FacadeError)
    return _problem(error.status, error.title, error.cause, error.cure)


async def _on_store_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StoreError)
    cause = f"store {error.target}: {error.cause}"
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Store failed", cause, error.cure)


async def _on_bad_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return _problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Bad request",
        f"{where}: {first['msg']}",
        "correct the request; /openapi.json describes it",
    )


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    title = HTTPStatus(error.status_code).phrase
    return _problem(
        error.status_code,
        title,
        f"{request.method} {request.url.path}: {error.detail}",
        "/openapi.json says what this gateway offers; is zgatectl of the same version?",
    )


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the exception again after this answer, and uvicorn logs it with its trace.
    return _problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Internal error",
        f"{request.method} {request.url.path} failed: {type(error).__name__}",
        "this is a bug; the gateway's log has the details",
    )


class _BodyLimit:
    """Refuse bodies above a size before they fill the memory, declared or not."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit_bytes:
                raise HTTPException(413, f"the body is larger than {self._limit_bytes} bytes")
            return message

        await self._app(scope, limited, send)
