"""A gateway that is none: what the API's and zgatectl's tests stand on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownClient, UnknownConnector
from zgate_gateway.api.schemas import GatewayState, VerdictAction
from zgate_gateway.metrics.snapshot import MetricsSnapshot

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _connector(name: str, *, is_up: bool = True) -> schemas.Connector:
    offer = schemas.ServiceOffer(
        name="pacs",
        connector=name,
        state=schemas.OfferState.UP if is_up else schemas.OfferState.KEEP,
        health=schemas.OfferHealth.UP if is_up else schemas.OfferHealth.DOWN,
        reason="" if is_up else "connection refused by 10.0.5.9",
        offered_at=NOW,
        changed_at=NOW,
        ports=["tcp/104", "tcp/11112-11120"],
        addresses=["10.101.255.254"],
        open_flows=3,
        total_flows=70,
        bytes_up=12345678,
        bytes_down=987654321000,
    )
    route = schemas.RouteOffer(
        network="10.20.0.0/16", connector=name, state=schemas.OfferState.UP, active=is_up
    )
    refused = schemas.RefusedOffer(
        kind="service", name="ris", code="not_authorized", text="the policy does not let it"
    )
    return schemas.Connector(
        name=name,
        connected=True,
        session_id=f"id-of-{name}",
        peer="[2001:db8:1234:5678:9abc:def0:1234:5678]:51820",
        since=NOW,
        services=[offer],
        routes=[route],
        refused=[] if is_up else [refused],
        open_flows=3,
        bytes_up=12345678,
        bytes_down=987654321000,
    )


class FakeGateway:
    """A GatewayFacade made of constants. ``calls`` notes what was asked; ``error`` is raised."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refreshed = 0
        self.error: Exception | None = None
        self.state = GatewayState.READY
        self.not_ready_because: list[str] = []
        self.edge = schemas.EdgeState(
            mode="native",
            interface="eth0",
            passed={"SHORT_HEADER": 900, "INITIAL": 12},
            dropped={"FIXED_BIT": 70, "TOO_SHORT": 7, "FRAGMENT": 0},
            blocked=3,
        )
        self.check = schemas.PolicyCheck(valid=True, clients=2, groups=1, rules=5)
        self.kernel_action: VerdictAction | None = VerdictAction.DENY
        self.denial = schemas.FlowNews(
            kind=schemas.FlowNewsKind.DENIED,
            ts=NOW,
            client="client-1",
            direction="up",
            source="10.100.0.2",
            destination="fd00:20::5",
            protocol=58,
            icmp_type=128,
            icmp_code=0,
            reason="POLICY_DEFAULT",
            revision=7,
            suppressed=12,
        )
        self.news = [[self.denial]]
        self.diff = schemas.PolicyDiff(
            valid=True,
            changed=True,
            revision=7,
            differences=[
                schemas.SubjectChange(
                    subjects=[
                        schemas.PolicySubject(kind="client", name="client-1", groups=["staff"]),
                        schemas.PolicySubject(kind="group", name="staff"),
                        schemas.PolicySubject(kind="others"),
                    ],
                    changes=[
                        schemas.FlowChange(
                            action=VerdictAction.ALLOW,
                            destinations=["10.20.0.0/16", "10.21.0.5/32"],
                            services=["tcp/443", "udp/8000-8100"],
                        ),
                        schemas.FlowChange(
                            action=VerdictAction.DENY, destinations=["::/0"], services=["any"]
                        ),
                    ],
                )
            ],
        )

        self.up = [self._session(name) for name in ("client-1", "client-2")]
        self.rtts_ms: list[float | None] = []
        self.logging = schemas.LogLevelState(
            level=schemas.LogLevel.INFO, configured=schemas.LogLevel.INFO
        )
        #: How a drain of the gateway goes: each look takes the next, the last one stays.
        self.drains: list[schemas.GatewayDrainState | None] = []
        self.offering = [_connector("site-a"), _connector("site-b", is_up=False)]

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def refresh(self) -> None:
        self.refreshed += 1

    def status(self) -> schemas.Status:
        self._called("status")
        return schemas.Status(
            version="0.1.0",
            state=self.state,
            not_ready_because=self.not_ready_because,
            started_at=NOW,
            uptime_s=93784,
            pid=4242,
            listen=["[::]:443"],
            engine="python",
            tun_name="zgate0",
            tun_mtu_bytes=1420,
            sessions=2,
            sessions_max=10000,
            sessions_total=7,
            sessions_refused={"EXPIRED": 3},
            services=5,
            services_up=4,
            connectors=3,
            networks=2,
            pools=[
                schemas.PoolUse(
                    family=4,
                    network="10.100.0.0/16",
                    gateway="10.100.0.1",
                    capacity=65533,
                    leased=3,
                    connected=2,
                )
            ],
            policy=self.policy().summary,
            kernel_maps={"flows": schemas.MapUse(used=17, size=262144)},
            kernel_events=schemas.EventState(received=20, lost=1, suppressed=2),
            drops={"POLICY_RULE": 5, "NO_CLIENT": 0},
            audit=schemas.AuditState(path="/var/log/zgate/audit.jsonl", written=20),
            edge=self.edge,
            drain=self._next_drain(),
        )

    def _next_drain(self) -> schemas.GatewayDrainState | None:
        if len(self.drains) > 1:
            return self.drains.pop(0)
        return self.drains[0] if self.drains else None

    async def sessions(self, query: schemas.SessionQuery) -> schemas.SessionList:
        self._called("sessions", query)
        found = [one for one in self.up if query.filter in one.client]
        end = None if query.limit is None else query.offset + query.limit
        return schemas.SessionList(
            sessions=found[query.offset : end], total=len(self.up), matched=len(found)
        )

    async def ping(self, client: str) -> schemas.Ping:
        self._called("ping", client)
        if client == "nobody":
            raise UnknownClient(
                "nobody has no session", "zgatectl sessions lists those that are up"
            )
        return schemas.Ping(
            client=client,
            session_id=f"id-of-{client}",
            peer="198.51.100.7:40000",
            addresses=["10.100.0.2"],
            rtt_ms=self.rtts_ms.pop(0) if self.rtts_ms else 12.5,
            timeout_s=3.0,
        )

    def _session(self, name: str) -> schemas.Session:
        return schemas.Session(
            client=name,
            groups=["staff"],
            session_id=f"id-of-{name}",
            peer="[2001:db8:1234:5678:9abc:def0:1234:5678]:51820",
            addresses=["10.100.0.2/32", "fd7a:7a67:6174:65::2/128"],
            established_at=NOW,
            age_s=3725,
            idle_s=0.5,
            rtt_ms=12.34,
            mtu_bytes=1420,
            certificate_serial="0a1b",
            certificate_not_after=NOW,
            counters=schemas.Counters(up_packets=10, up_bytes=12345678, down_bytes=987654321000),
        )

    def clients(self) -> list[schemas.Client]:
        self._called("clients")
        connected = schemas.Client(
            name="client-1",
            groups=["staff"],
            connected=True,
            addresses=["10.100.0.2", "fd7a:7a67:6174:65::2"],
            in_policy=True,
            rules=4,
            created_at=NOW,
            last_seen_at=NOW,
            counters=schemas.Counters(dropped_packets=5),
        )
        return [schemas.Client(name="never-seen", connected=False, in_policy=True), connected]

    def services(self) -> list[schemas.Service]:
        self._called("services")
        offers = [
            one for connector in self.offering for one in connector.services if one.name == "pacs"
        ]
        addresses = ["10.101.0.1", "fd7a:7a67:6174:66::1"]
        return [
            schemas.Service(
                name="pacs",
                addresses=addresses,
                dns_name="pacs.zgate.internal",
                state=schemas.OfferState.UP,
                offers=offers,
            ),
            schemas.Service(name="räume", addresses=["10.101.0.2"], state=schemas.OfferState.GONE),
        ]

    def connectors(self) -> list[schemas.Connector]:
        self._called("connectors")
        return self.offering

    async def drain_gateway(self, request: schemas.GatewayDrainRequest) -> schemas.GatewayDrain:
        self._called("drain_gateway", request)
        if request.undo:
            return schemas.GatewayDrain(drain=None)
        return schemas.GatewayDrain(drain=self._next_drain())

    async def drain(self, connector: str, request: schemas.DrainRequest) -> schemas.Drain:
        self._called("drain", connector, request)
        if connector == "nobody":
            raise UnknownConnector(
                "nobody offers nothing, and is not drained",
                "zgatectl connectors lists those that do",
            )
        return schemas.Drain(
            connector=connector,
            connected=True,
            drain=None if request.undo else schemas.DrainState(since=NOW),
            open_flows=3,
        )

    def log_level(self) -> schemas.LogLevelState:
        self._called("log_level")
        return self.logging

    def set_log_level(self, request: schemas.LogLevelRequest) -> schemas.LogLevelState:
        self._called("set_log_level", request)
        until = None if request.for_s is None else NOW
        changed = {"level": request.level, "until": until}
        self.logging = self.logging.model_copy(update=changed)
        return self.logging

    def policy(self) -> schemas.PolicyView:
        self._called("policy")
        summary = schemas.PolicySummary(
            revision=7,
            source="/etc/zgate/policy.yaml",
            sha256="ab" * 32,
            loaded_at=NOW,
            clients=1,
            groups=1,
            rules=3,
            kernel_policies=2,
        )
        rule = schemas.RuleView(
            rule_id="allow-dns",
            action=VerdictAction.ALLOW,
            kind="ip_cidr",
            destinations=["8.8.8.8/32", "1.1.1.1/32"],
            protocols=["udp", "tcp"],
            ports=["53", "8000-8100"],
            line=9,
        )
        last = schemas.RuleView(
            rule_id="deny-default", action=VerdictAction.DENY, kind="default", line=15
        )
        finding = schemas.PolicyFinding(
            severity=schemas.Severity.WARNING, text="policy.yaml:12: x: never reached", line=12
        )
        return schemas.PolicyView(
            summary=summary,
            clients={"client-1": [rule, last]},
            groups={"staff": [last]},
            warnings=[finding],
        )

    def why(self, query: schemas.WhyQuery) -> schemas.Why:
        self._called("why", query)
        if query.client != "client-1":
            raise UnknownClient(f"no client named {query.client}", "zgatectl clients lists them")
        compiler = schemas.Verdict(
            action=VerdictAction.DENY,
            reason="POLICY_RULE",
            rule_id="deny-default",
            rule_file="/etc/zgate/policy.yaml",
            rule_line=15,
            revision=7,
        )
        kernel = None
        if self.kernel_action is not None:
            kernel = compiler.model_copy(update={"action": self.kernel_action})
        return schemas.Why(
            client=query.client,
            groups=["staff"],
            connected=kernel is not None,
            source="10.100.0.2",
            destination=str(query.destination),
            protocol=query.protocol,
            port=query.port,
            compiler=compiler,
            kernel=kernel,
            kernel_note=None if kernel is not None else "the client has no session",
            agree=kernel is None or kernel.action is compiler.action,
        )

    async def flows(self, query: schemas.FlowQuery) -> schemas.FlowList:
        self._called("flows", query)
        if query.denied:
            return schemas.FlowList(denials=[self.denial])
        flow = schemas.FlowView(
            client="client-1",
            protocol=6,
            client_address="10.100.0.2",
            client_port=40000,
            remote_address="10.20.0.5",
            remote_port=443,
            stage=schemas.FlowStage.ANSWERED,
            idle_s=3,
            rule_id="allow-https",
            rule_line=9,
            revision=7,
        )
        ping = flow.model_copy(
            update={"protocol": 1, "client_port": None, "remote_port": None, "rule_id": None}
        )
        return schemas.FlowList(flows=[flow, ping][: query.limit], total=2)

    def follow_flows(self, query: schemas.FlowEventQuery) -> AsyncIterator[list[schemas.FlowNews]]:
        self._called("follow_flows", query)
        return self._news()

    async def _news(self) -> AsyncIterator[list[schemas.FlowNews]]:
        yield []
        for batch in self.news:
            yield batch

    async def readiness(self) -> schemas.Probe:
        self._called("readiness")
        ok = self.state is GatewayState.READY and not self.not_ready_because
        return schemas.Probe(
            ok=ok, state=self.state, because=self.not_ready_because, checks={"state": ok}
        )

    async def metrics(self) -> MetricsSnapshot:
        self._called("metrics")
        return MetricsSnapshot("0.1.0", "python", ready=True, started_at_s=1, sessions=2)

    async def check_policy(self, request: schemas.PolicyCheckRequest) -> schemas.PolicyCheck:
        self._called("check_policy", request)
        return self.check

    async def reload_policy(self) -> schemas.PolicyReload:
        self._called("reload_policy")
        view = self.policy()
        return schemas.PolicyReload(
            previous_revision=6,
            summary=view.summary,
            changed=True,
            duration_ms=12.5,
            warnings=view.warnings,
        )

    async def diff_policy(self, request: schemas.PolicyDiffRequest) -> schemas.PolicyDiff:
        self._called("diff_policy", request)
        return self.diff

    async def apply_policy(self, request: schemas.PolicyApplyRequest) -> schemas.PolicyReload:
        self._called("apply_policy", request)
        return await self.reload_policy()

    async def rollback_policy(self, request: schemas.PolicyRollbackRequest) -> schemas.PolicyReload:
        self._called("rollback_policy", request)
        return await self.reload_policy()

    async def policy_history(self, limit: int) -> schemas.PolicyHistory:
        self._called("policy_history", limit)
        return schemas.PolicyHistory(
            revisions=[
                schemas.PolicyRevision(
                    revision=number,
                    loaded_at=NOW,
                    sha256="ab" * 32 if number > 5 else None,
                    origin=origin,
                    source="/etc/zgate/policy.yaml",
                    clients=1,
                    groups=1,
                    rules=3,
                    in_force=number == 7,
                    has_text=number > 5,
                )
                for number, origin in ((7, "rollback"), (6, "apply"), (5, "start"))
            ]
        )

    async def kick(self, client: str, reason: str) -> schemas.Kick:
        self._called("kick", client, reason)
        if client == "nobody":
            raise UnknownClient(
                "nobody has no session", "zgatectl sessions lists those that are up"
            )
        return schemas.Kick(client=client, sessions_closed=1, addresses=["10.100.0.2"])


@pytest.fixture
def fake_gateway() -> FakeGateway:
    return FakeGateway()


class LiveGateway:
    """A real server on a Unix socket, in an event loop of its own thread; the fake can change."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.fake = FakeGateway()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __getattr__(self, name: str) -> Any:
        """Whatever the server asks, the fake of the running test answers."""
        return getattr(self.fake, name)

    def start(self) -> None:
        from zgate_gateway.api.server import ApiServer

        self._thread.start()
        self._server = ApiServer(self, socket_path=self.socket_path, socket_group=None)
        self._call(self._server.start())

    def stop(self) -> None:
        self._call(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)


@pytest.fixture(scope="session")
def _live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    server = LiveGateway(tmp_path_factory.mktemp("api") / "api.sock")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def live_gateway(_live_server: LiveGateway, fake_gateway: FakeGateway) -> LiveGateway:
    _live_server.fake = fake_gateway
    return _live_server
