"""Every route, every kind of error, and whatever input: an answer in our words, never a trace."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_control.store import StoreError
from zgate_gateway.api import app as app_module
from zgate_gateway.api import schemas
from zgate_gateway.api.app import create_app, create_probe_app
from zgate_gateway.api.facade import (
    FacadeError,
    GatewayFacade,
    NotReady,
    OperationFailed,
    PolicyConflict,
    PolicyRefused,
    UnknownClient,
    UnknownPolicy,
)

ROUTES = [
    ("GET", "/v1/status", None),
    ("GET", "/v1/sessions", None),
    ("GET", "/v1/sessions?sort=rate&reverse=true&filter=x&limit=5&offset=5", None),
    ("POST", "/v1/sessions/client-1/ping", None),
    ("GET", "/v1/clients", None),
    ("GET", "/v1/services", None),
    ("GET", "/v1/connectors", None),
    ("GET", "/v1/policy", None),
    ("GET", "/v1/why?client=client-1&destination=10.20.0.5&protocol=6&port=443", None),
    ("GET", "/v1/flows?client=client-1", None),
    ("GET", "/v1/flows/events?denied=true", None),
    ("POST", "/v1/policy/check", {"text": "version: '1.0'"}),
    ("POST", "/v1/policy/reload", None),
    ("GET", "/v1/policy/history", None),
    ("POST", "/v1/policy/diff", {"revision": 3}),
    ("POST", "/v1/policy/apply", {"text": "version: '1.0'"}),
    ("POST", "/v1/policy/rollback", {"revision": 3}),
    ("POST", "/v1/sessions/client-1/kick", {"reason": "lost laptop"}),
    ("POST", "/v1/drain", {"deadline_s": 60}),
    ("GET", "/v1/log-level", None),
    ("PUT", "/v1/log-level", {"level": "debug", "for_s": 60}),
    ("POST", "/v1/connectors/site-a/drain", {"deadline_s": 60}),
]


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.fixture
async def api(fake_gateway: GatewayFacade) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(fake_gateway)) as client:
        yield client


def problem(response: httpx.Response, status: int) -> schemas.Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found = schemas.Problem.model_validate(response.json())
    assert found.status == status and found.cause and found.cure
    return found


async def test_reads_hand_back_what_the_facade_said(api: Any, fake_gateway: Any) -> None:
    async def get(path: str) -> Any:
        response = await api.get(path)
        assert response.status_code == 200
        return response.json()

    assert schemas.Status(**await get("/v1/status")) == fake_gateway.status()
    assert schemas.PolicyView(**await get("/v1/policy")) == fake_gateway.policy()
    sessions = schemas.SessionList(**await get("/v1/sessions")).sessions
    assert [one.client for one in sessions] == ["client-1", "client-2"]
    assert schemas.ServiceList(**await get("/v1/services")).services == fake_gateway.services()
    found = schemas.ConnectorList(**await get("/v1/connectors")).connectors
    assert found == fake_gateway.connectors()
    clients = schemas.ClientList(**await get("/v1/clients")).clients
    assert [one.name for one in clients] == ["client-1", "never-seen"]


async def test_why_asks_for_one_packet(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    response = await api.get(
        "/v1/why",
        params={"client": "client-1", "destination": "fd00::5", "protocol": 17, "port": 53},
    )
    why = schemas.Why(**response.json())
    assert (why.destination, why.protocol, why.port) == ("fd00::5", 17, 53)
    assert why.compiler.rule_line == 15 and why.agree
    (call,) = fake_gateway.calls
    assert call[1].destination.version == 6


async def test_why_asks_for_a_service(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    params = {"client": "client-1", "service": "pacs", "family": 6, "protocol": 6, "port": 104}
    assert (await api.get("/v1/why", params=params)).status_code == 200
    (call,) = fake_gateway.calls
    query = call[1]
    assert (query.destination, query.service, query.family, query.port) == (None, "pacs", 6, 104)
    for more in ({"destination": "10.0.0.1"}, {"family": 5}):
        found = problem(await api.get("/v1/why", params={**params, **more}), 422)
        assert "expected" in found.cause
    del params["service"]
    assert "destination or service" in problem(await api.get("/v1/why", params=params), 422).cause


async def test_flows_are_asked_for(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    answer = schemas.FlowList(**(await api.get("/v1/flows?client=c&limit=1")).json())
    assert (len(answer.flows), answer.total) == (1, 2)
    denied = schemas.FlowList(**(await api.get("/v1/flows?denied=true")).json())
    assert denied.denials == [fake_gateway.denial]
    assert fake_gateway.calls == [
        ("flows", schemas.FlowQuery(client="c", limit=1)),
        ("flows", schemas.FlowQuery(denied=True)),
    ]
    problem(await api.get("/v1/flows?limit=0"), 422)
    problem(await api.get("/v1/flows/events?client=%0A"), 422)


async def test_news_of_flows_are_json_lines(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    fake_gateway.news = [[fake_gateway.denial] * 2, [], [fake_gateway.denial]]
    response = await api.get("/v1/flows/events?client=client-1&denied=true")
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = response.text.split("\n")
    assert [bool(line) for line in lines] == [False, True, True, False, True, False]
    assert schemas.FlowNews.model_validate_json(lines[1]) == fake_gateway.denial
    assert "rule_id" not in json.loads(lines[1])
    assert fake_gateway.calls == [
        ("follow_flows", schemas.FlowEventQuery(client="client-1", denied=True))
    ]


async def test_changes_reach_the_facade(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    check = await api.post("/v1/policy/check", json={"text": "x", "name": "p.yaml"})
    assert schemas.PolicyCheck(**check.json()).rules == 5
    reload = await api.post("/v1/policy/reload")
    assert schemas.PolicyReload(**reload.json()).previous_revision == 6
    kick = await api.post("/v1/sessions/client-1/kick", json={"reason": "lost laptop"})
    assert schemas.Kick(**kick.json()).sessions_closed == 1
    checked, _reloaded, _view, kicked = fake_gateway.calls
    assert checked[1] == schemas.PolicyCheckRequest(text="x", name="p.yaml")
    assert kicked == ("kick", "client-1", "lost laptop")


async def test_policy_changes_reach_the_facade(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    answer = await api.post("/v1/policy/diff", json={"text": "x", "name": "p.yaml"})
    assert schemas.PolicyDiff(**answer.json()) == fake_gateway.diff
    body = {"text": "x", "expected_revision": 7}
    answer = await api.post("/v1/policy/apply", json=body)
    assert schemas.PolicyReload(**answer.json()).changed
    answer = await api.post("/v1/policy/rollback", json={"revision": 3})
    assert schemas.PolicyReload(**answer.json()).previous_revision == 6
    answer = await api.get("/v1/policy/history", params={"limit": 3})
    assert [one.revision for one in schemas.PolicyHistory(**answer.json()).revisions] == [7, 6, 5]
    calls = [call for call in fake_gateway.calls if len(call) > 1]
    assert calls == [
        ("diff_policy", schemas.PolicyDiffRequest(text="x", name="p.yaml")),
        ("apply_policy", schemas.PolicyApplyRequest(text="x", expected_revision=7)),
        ("rollback_policy", schemas.PolicyRollbackRequest(revision=3)),
        ("policy_history", 3),
    ]


@pytest.mark.parametrize("body", [{}, {"text": "x", "revision": 1}, {"revision": 0}])
async def test_a_diff_is_with_a_text_or_a_revision(api: httpx.AsyncClient, body: Any) -> None:
    problem(await api.post("/v1/policy/diff", json=body), 422)


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        ({}, schemas.DrainRequest()),
        ({"undo": True}, schemas.DrainRequest(undo=True)),
        ({"deadline_s": 0.5}, schemas.DrainRequest(deadline_s=0.5)),
    ],
)
async def test_a_drain_reaches_the_facade(
    api: httpx.AsyncClient, fake_gateway: Any, body: Any, request_: schemas.DrainRequest
) -> None:
    answer = await api.post("/v1/connectors/site%2Fa/drain", json=body)
    assert schemas.Drain(**answer.json()).connector == "site/a"
    assert fake_gateway.calls == [("drain", "site/a", request_)]


@pytest.mark.parametrize("body", [{"deadline_s": -1}, {"deadline_s": 1e6}, {"undo": 3}, {"x": 1}])
async def test_a_drain_that_makes_no_sense_is_refused(api: httpx.AsyncClient, body: Any) -> None:
    problem(await api.post("/v1/connectors/a/drain", json=body), 422)


@pytest.mark.parametrize("name", ["a/b", "Ünï cödé", "a?b", "a%2Fb", "..", "kick"])
async def test_any_legal_name_can_be_kicked(
    api: httpx.AsyncClient, fake_gateway: Any, name: str
) -> None:
    # httpx resolves dot segments even when they are a name: the dots are escaped, too.
    part = quote(name, safe="").replace(".", "%2E")
    response = await api.post(f"/v1/sessions/{part}/kick", json={})
    assert response.status_code == 200
    assert fake_gateway.calls == [("kick", name, "")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownClient, 404),
        (PolicyRefused, 422),
        (PolicyConflict, 409),
        (UnknownPolicy, 404),
        (NotReady, 503),
        (OperationFailed, 500),
        (FacadeError, 500),
    ],
)
@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_errors_of_the_gateway_name_cause_and_cure(
    api: httpx.AsyncClient,
    fake_gateway: Any,
    error: type[FacadeError],
    status: int,
    method: str,
    path: str,
    body: Any,
) -> None:
    fake_gateway.error = error("the cause", "the cure")
    found = problem(await api.request(method, path, json=body), status)
    assert (found.cause, found.cure, found.title) == ("the cause", "the cure", error.title)
    assert str(fake_gateway.error) == "the cause; the cure"


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_a_failing_store_names_cause_and_cure(
    api: httpx.AsyncClient, fake_gateway: Any, method: str, path: str, body: Any
) -> None:
    fake_gateway.error = StoreError("zgate.db", "the disk is full", "free some space")
    found = problem(await api.request(method, path, json=body), 500)
    assert (found.cause, found.cure) == ("store zgate.db: the disk is full", "free some space")


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_a_bug_is_an_answer_without_details(
    api: httpx.AsyncClient, fake_gateway: Any, method: str, path: str, body: Any
) -> None:
    fake_gateway.error = KeyError("internal secret")
    found = problem(await api.request(method, path, json=body), 500)
    assert "KeyError" in found.cause and "secret" not in found.cause


async def test_unknown_routes_and_methods_are_problems_too(api: httpx.AsyncClient) -> None:
    assert "/v1/nothing" in problem(await api.get("/v1/nothing"), 404).cause
    problem(await api.get("/v1/policy/reload"), 405)
    problem(await api.get("/docs"), 404)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, "client"),
        ({"client": "c", "destination": "example.com", "protocol": 6}, "destination"),
        ({"client": "c", "destination": "10.0.0.1", "protocol": 256}, "protocol"),
        ({"client": "c", "destination": "10.0.0.1", "protocol": 6, "port": 65536}, "port"),
        ({"client": "c\n", "destination": "10.0.0.1", "protocol": 6}, "client"),
        ({"client": "c" * 65, "destination": "10.0.0.1", "protocol": 6}, "client"),
        ({"client": "c", "destination": "10.0.0.1", "protocol": 6, "prot": 1}, "prot"),
    ],
)
async def test_a_bad_question_names_the_field(
    api: httpx.AsyncClient, params: dict[str, Any], named: str
) -> None:
    found = problem(await api.get("/v1/why", params=params), 422)
    assert found.cause.startswith(f"{named}: ")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"reason": "a\\u0000b"}', b'{"x": 1}'])
async def test_a_bad_body_is_refused(
    api: httpx.AsyncClient, fake_gateway: Any, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    problem(await api.post("/v1/sessions/c/kick", content=body, headers=headers), 422)
    assert fake_gateway.calls == []


@pytest.mark.parametrize("declared", [True, False])
async def test_a_huge_body_is_refused_before_it_is_read(
    fake_gateway: Any, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 1000)
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 100
            yield b"x" * 100

    headers = {"content-type": "application/json"}
    if declared:
        headers["content-length"] = "10000"
    async with client_of(create_app(fake_gateway)) as api:
        found = problem(await api.post("/v1/policy/check", content=chunks(), headers=headers), 413)
    assert "1000 bytes" in found.cause
    assert fake_gateway.calls == []


async def test_probes(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    assert (await api.get("/health")).json()["ok"] is True
    assert (await api.get("/ready")).status_code == 200
    fake_gateway.state = schemas.GatewayState.DRAINING
    fake_gateway.not_ready_because = ["SIGTERM"]
    ready = await api.get("/ready")
    assert ready.status_code == 503
    assert ready.json() == {
        "ok": False,
        "state": "draining",
        "because": ["SIGTERM"],
        "checks": {"state": False},
    }
    assert (await api.get("/health")).status_code == 200


async def test_ready_needs_no_reason_against(api: httpx.AsyncClient, fake_gateway: Any) -> None:
    fake_gateway.not_ready_because = ["no policy"]
    assert (await api.get("/ready")).status_code == 503


async def test_metrics_in_both_formats(api: httpx.AsyncClient) -> None:
    text = await api.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert "zgate_sessions 2.0" in text.text
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    openmetrics = await api.get("/metrics", headers=accept)
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_the_probe_app_changes_nothing_and_shows_nobody(fake_gateway: Any) -> None:
    async with client_of(create_probe_app(fake_gateway)) as api:
        assert (await api.get("/metrics")).status_code == 200
        assert (await api.get("/ready")).status_code == 200
        for method, path, body in ROUTES:
            problem(await api.request(method, path, json=body), 404)


async def test_the_schema_is_complete(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert "default" in operation["responses"], path
            if path != "/metrics":
                content = operation["responses"]["200"]["content"]
                kind = "x-ndjson" if path == "/v1/flows/events" else "json"
                assert list(content) == [f"application/{kind}"], path
                assert "$ref" in content[f"application/{kind}"]["schema"], path
    assert len(paths) == 23


# --- any input ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ANY = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(response: httpx.Response) -> None:
    """An answer or a problem, but never an internal error."""
    assert response.status_code in {200, 400, 404, 405, 422}
    if response.status_code != 200:
        problem(response, response.status_code)


@ANY
@given(body=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
async def test_any_body(fake_gateway: Any, body: bytes) -> None:
    async with client_of(create_app(fake_gateway)) as api:
        for path in ("/v1/policy/check", "/v1/sessions/c/kick"):
            check(await api.post(path, content=body, headers={"content-type": "application/json"}))


@ANY
@given(
    params=st.dictionaries(
        st.sampled_from(["client", "destination", "protocol", "port"]) | st.text(max_size=5),
        st.text(max_size=70)
        | st.integers().map(str)
        | st.ip_addresses().map(str)
        | st.just("client-1"),
    )
)
async def test_any_question(fake_gateway: Any, params: dict[str, str]) -> None:
    async with client_of(create_app(fake_gateway)) as api:
        check(await api.get("/v1/why", params=params))


@ANY
@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
async def test_any_path(fake_gateway: Any, path: str) -> None:
    async with client_of(create_app(fake_gateway)) as api:
        check(await api.post(f"/v1/sessions/{quote(path)}/kick", json={}))
        check(await api.get("/" + quote(path)))
