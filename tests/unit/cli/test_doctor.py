"""zgatectl doctor: what each check says of a host that is so, or so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_cli.answers import CheckReport, Finding, Verdict
from zgate_cli.doctor import command
from zgate_cli.doctor.files import check_files, judge_disk
from zgate_cli.doctor.host import Context, Host, Ran
from zgate_cli.doctor.network import check_network
from zgate_cli.doctor.system import check_system, runbook_of
from zgate_cli.findings import report_of, skip, warn
from zgate_gateway.api import schemas
from zgate_gateway.config import GatewayConfig
from zgate_gateway.problems import NAMES
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage
from zgate_identity.tls_files import write_agent_bundle

NOW = datetime.now(UTC)
LINKS = [
    {"ifname": "lo", "flags": ["UP"], "mtu": 65536},
    {"ifname": "eth0", "flags": ["UP"], "mtu": 1500},
    {"ifname": "zgate0", "flags": ["UP"], "mtu": 1420},
]


class FakeHost(Host):
    """Files and outputs by name; what is not named is not there."""

    def __init__(self, files: dict[str, str], outputs: dict[str, Any]) -> None:
        self.files = {
            "/proc/sys/net/ipv4/ip_forward": "1",
            "/proc/sys/net/ipv6/conf/all/forwarding": "1",
            "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB",
        } | files
        self.outputs = {
            "ip -j link": LINKS,
            "ip -j -4 route show default": [{"dst": "default", "dev": "eth0"}],
            "ip -j -4 route show table all": [{"dst": "192.0.2.0/24", "dev": "eth0"}],
            "nft -j list ruleset": {"nftables": [{"table": {"family": "inet", "name": "zgate"}}]},
        } | outputs

    def read(self, path: str | Path) -> str | None:
        return self.files.get(str(path))

    def run(self, *argv: str) -> Ran:
        found = self.outputs.get(" ".join(argv))
        if found is None:
            return Ran(1, "", "not here")
        return Ran(0, found if isinstance(found, str) else json.dumps(found))


def context(
    tmp_path: Path,
    status: schemas.Status | None = None,
    files: dict[str, str] | None = None,
    config: GatewayConfig | None = None,
    **outputs: Any,
) -> Context:
    spaced = {name.replace("_", " ").replace("  ", " -"): value for name, value in outputs.items()}
    made = Context(FakeHost(files or {}, spaced), NOW, tmp_path / "gateway.yaml", tmp_path / "sock")
    made.config = config or GatewayConfig.model_construct(state_dir=tmp_path / "state")
    made.status, made.status_problem = status, "" if status else "nobody answers"
    return made


def by_name(check: Callable[[Context], Iterator[Finding]], on: Context) -> dict[str, Finding]:
    found = {one.name: one for one in check(on)}
    for one in found.values():
        # Whoever is told that something is wrong is told what to do.
        assert one.fix or one.verdict in {Verdict.OK, Verdict.SKIP}, one
    return found


# The network.


def test_a_good_network(tmp_path: Path, fake_gateway: Any) -> None:
    found = by_name(check_network, context(tmp_path, fake_gateway.status()))
    assert {one.verdict for one in found.values()} <= {Verdict.OK, Verdict.SKIP}, found
    assert found["uplink"].text == "eth0"
    assert found["nftables"].verdict is Verdict.OK


def test_a_gateway_with_a_network_of_its_own_is_not_judged_by_ours(
    tmp_path: Path, fake_gateway: Any
) -> None:
    off = {"/proc/sys/net/ipv4/ip_forward": "0"}
    nothing = {"ip__j link": LINKS[:2], "nft__j list ruleset": {"nftables": []}}
    found = by_name(check_network, context(tmp_path, fake_gateway.status(), off, **nothing))
    assert {one.verdict for one in found.values()} <= {Verdict.OK, Verdict.SKIP}, found
    assert "podman exec" in found["tun_interface"].fix


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "words"),
    [
        ({"ip__j link": LINKS[:1]}, "uplink", Verdict.FAIL, "no interface eth0"),
        ({"ip__j__4 route show default": []}, "uplink", Verdict.FAIL, "no default route"),
        (
            {"ip__j link": [{**LINKS[1], "flags": []}, LINKS[2]]},
            "uplink", Verdict.FAIL, "eth0 is down",
        ),
        (
            {"ip__j link": [{**LINKS[1], "mtu": 1400}, LINKS[2]]},
            "uplink_mtu", Verdict.WARN, "1400",
        ),
        (
            {"ip__j link": [{**LINKS[1], "mtu": 1300}, LINKS[2]]},
            "uplink_mtu", Verdict.FAIL, "no IPv6 packet",
        ),
        (
            {"ip__j__4 route show table all": [{"dst": "10.0.0.0/8", "dev": "eth1"}]},
            "pools", Verdict.FAIL, "10.100.0.0/16 overlaps with 10.0.0.0/8 on eth1",
        ),
        ({"nft__j list ruleset": {"nftables": []}}, "nftables_own", Verdict.FAIL, "inet zgate"),
    ],
)  # fmt: skip
def test_networks(
    tmp_path: Path,
    fake_gateway: Any,
    changes: dict[str, Any],
    name: str,
    verdict: Verdict,
    words: str,
) -> None:
    found = by_name(check_network, context(tmp_path, fake_gateway.status(), **changes))[name]
    assert found.verdict is verdict and words in found.text, found


@pytest.mark.parametrize(
    ("listen", "answers", "verdict", "words"),
    [
        ("::", False, Verdict.OK, "the one that was dialled"),
        ("192.0.2.1", False, Verdict.OK, "192.0.2.1"),
        ("2001:db8::1", False, Verdict.OK, "2001:db8::1"),
        ("192.0.2.2", False, Verdict.FAIL, "no interface has 192.0.2.2"),
        ("192.0.2.2", True, Verdict.WARN, "no interface has 192.0.2.2"),
    ],
    ids=["all", "IPv4", "IPv6", "none of the host's", "another gateway has it now"],
)
def test_the_gateways_address(
    tmp_path: Path, fake_gateway: Any, listen: str, answers: bool, verdict: Verdict, words: str
) -> None:
    config = GatewayConfig.model_validate(
        {"state_dir": tmp_path / "state", "listen": {"address": listen}}
    )
    held = [{"local": "192.0.2.1"}, {"local": "2001:db8::1"}]
    host = context(
        tmp_path,
        fake_gateway.status() if answers else None,
        config=config,
        **{"ip__j addr": [{"addr_info": held[:1]}, {"addr_info": held[1:]}]},
    )
    found = by_name(check_network, host)["addresses"]
    assert found.verdict is verdict and words in found.text, found


@pytest.mark.parametrize(
    ("files", "name", "verdict"),
    [
        ({"/proc/sys/net/ipv4/ip_forward": "0"}, "forwarding_ipv4", Verdict.FAIL),
        (
            {
                "/proc/sys/net/netfilter/nf_conntrack_count": "850",
                "/proc/sys/net/netfilter/nf_conntrack_max": "1000",
            },
            "conntrack",
            Verdict.WARN,
        ),
        (
            {
                "/proc/sys/net/netfilter/nf_conntrack_count": "999",
                "/proc/sys/net/netfilter/nf_conntrack_max": "1000",
            },
            "conntrack",
            Verdict.FAIL,
        ),
    ],
)
def test_sysctls(
    tmp_path: Path, fake_gateway: Any, files: dict[str, str], name: str, verdict: Verdict
) -> None:
    on = context(tmp_path, fake_gateway.status(), files)
    assert by_name(check_network, on)[name].verdict is verdict


def test_a_tun_of_somebody_else(tmp_path: Path) -> None:
    found = by_name(check_network, context(tmp_path))["tun_interface"]
    assert found.verdict is Verdict.FAIL and "no gateway answers" in found.text


# Files.


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open(tmp_path / "state" / "pki", NOW)[0]


def issue(
    authority: CertificateAuthority, lifetime: timedelta, usage: Usage = Usage.SERVER
) -> None:
    made = authority.issue(
        "gateway", usage=usage, dns_names=["gw.test"] if usage is Usage.SERVER else [],
        lifetime=lifetime, now=NOW,
    )  # fmt: skip
    write_agent_bundle(
        authority.directory, "gateway", ca_pem=made.ca_pem, certificate_pem=made.certificate_pem,
        key_pem=made.key_pem, replace=True,
    )  # fmt: skip


def test_good_files(tmp_path: Path, authority: CertificateAuthority) -> None:
    issue(authority, timedelta(days=90))
    (tmp_path / "state").chmod(0o700)
    found = by_name(check_files, context(tmp_path))
    wrong = [one for one in found.values() if one.verdict is not Verdict.OK]
    assert [one.name for one in wrong] == ["policy"]
    assert found["chain"].text == "agents that dial gw.test accept it"
    assert 89 < float(found["certificate"].values["days_left"] or 0) < 91


@pytest.mark.parametrize(
    ("lifetime", "verdict"),
    [(timedelta(days=90), Verdict.OK), (timedelta(days=13), Verdict.OK)],
)
def test_short_lived_certificates_are_not_late(
    tmp_path: Path, authority: CertificateAuthority, lifetime: timedelta, verdict: Verdict
) -> None:
    issue(authority, lifetime)
    assert by_name(check_files, context(tmp_path))["certificate"].verdict is verdict


@pytest.mark.parametrize(
    ("days_later", "verdict"), [(70, Verdict.OK), (80, Verdict.WARN), (91, Verdict.FAIL)]
)
def test_a_certificate_that_ends(
    tmp_path: Path, authority: CertificateAuthority, days_later: int, verdict: Verdict
) -> None:
    issue(authority, timedelta(days=90))
    on = context(tmp_path)
    on.now = NOW + timedelta(days=days_later)
    assert by_name(check_files, on)["certificate"].verdict is verdict


def test_certificates_that_are_no_good(tmp_path: Path, authority: CertificateAuthority) -> None:
    issue(authority, timedelta(days=90), Usage.CLIENT)
    found = by_name(check_files, context(tmp_path))
    assert "not for a server" in found["certificate"].text
    assert found["chain"].verdict is Verdict.FAIL
    issue(authority, timedelta(days=90))
    (authority.directory / "gateway.key").chmod(0o644)
    found = by_name(check_files, context(tmp_path))
    assert found["key_mode"].verdict is Verdict.FAIL
    assert "chmod 600" in found["key_mode"].fix
    other = CertificateAuthority.open(tmp_path / "other", NOW)[0]
    authority.ca_file.write_bytes(other.ca_file.read_bytes())
    assert by_name(check_files, context(tmp_path))["chain"].verdict is Verdict.FAIL


def test_a_revocation_list_that_ends(tmp_path: Path, authority: CertificateAuthority) -> None:
    issue(authority, timedelta(days=90))
    on = context(tmp_path)
    on.now = authority.crl.next_update - timedelta(hours=3)
    assert by_name(check_files, on)["crl"].verdict is Verdict.WARN
    on.now = authority.crl.next_update + timedelta(seconds=1)
    found = by_name(check_files, on)["crl"]
    assert found.verdict is Verdict.FAIL and "no client can connect" in found.text


@pytest.mark.parametrize(
    ("free", "free_inodes", "verdict"),
    [
        (50, 90, Verdict.OK), (5, 90, Verdict.WARN), (1, 90, Verdict.FAIL),
        (50, 5, Verdict.WARN), (50, 1, Verdict.FAIL),
    ],
)  # fmt: skip
def test_disks(free: int, free_inodes: int, verdict: Verdict) -> None:
    use: Any = SimpleNamespace(
        f_bavail=free * 1000, f_frsize=4096, f_blocks=100_000, f_favail=free_inodes, f_files=100
    )
    assert judge_disk(Path("/x"), use).verdict is verdict


def test_a_large_disk_is_not_full_with_a_hundredth_free() -> None:
    use: Any = SimpleNamespace(
        f_bavail=10_000_000, f_frsize=4096, f_blocks=10**9, f_favail=1, f_files=0
    )
    assert judge_disk(Path("/x"), use).verdict is Verdict.OK


# The system.


def test_a_gateway_that_does_well(tmp_path: Path, fake_gateway: Any) -> None:
    found = by_name(check_system, context(tmp_path, fake_gateway.status()))
    assert found["gateway"].text.startswith("ready, 2 sessions")
    assert found["memory"].verdict is Verdict.OK
    assert not [name for name in found if name.startswith("alert_")]


def test_a_gateway_that_does_not(tmp_path: Path, fake_gateway: Any) -> None:
    alert = schemas.Alert(name="disk_full", text="the disk is full; make room", since=NOW)
    worker = schemas.Worker(worker=0, pid=1, restarts=2)
    status = fake_gateway.status().model_copy(
        update={
            "alerts": [alert], "workers": [worker], "version": "0.0.9",
            "not_ready_because": ["no policy"],
        }
    )  # fmt: skip
    found = by_name(check_system, context(tmp_path, status))
    assert found["gateway"].text == "not ready: no policy"
    assert found["alert_disk_full"].text == "the disk is full; make room"
    assert "docs/runbooks/ZgateDiskFull.md" in found["alert_disk_full"].fix
    assert found["workers"].verdict is Verdict.WARN
    assert "the gateway runs 0.0.9" in found["version"].text
    assert by_name(check_system, context(tmp_path))["gateway"].verdict is Verdict.FAIL


# The command.


def test_without_a_gateway(zgatectl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("listen: {port: 99999}\n")
    nowhere = str(tmp_path / "none.sock")
    result = zgatectl("doctor", "--socket", nowhere, "--config", str(config), "--json", code=1)
    report = CheckReport(**json.loads(result.stdout))
    found = {one.name: one for one in report.findings}
    assert report.verdict is Verdict.FAIL
    assert found["gateway"].verdict is found["configuration"].verdict is Verdict.FAIL
    assert "listen.port" in found["configuration"].text


def test_a_check_with_a_fault_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Context) -> Iterator[Finding]:
        yield skip("one", "one", "first")
        raise RuntimeError("oh")

    def good(_: Context) -> Iterator[Finding]:
        yield warn("two", "two", "second", "do")

    monkeypatch.setattr(command, "GROUPS", (("a", broken), ("b", good)))
    names = [one.name for one in command.examine(context(tmp_path))]
    assert names == ["one", "internal", "two"]


def test_exit_codes_and_layout(zgatectl: Any, fits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: Context) -> Iterator[Finding]:
        yield warn("w", "a title", "words " * 30, "do this " * 20)

    monkeypatch.setattr(command, "GROUPS", (("all", check),))
    text = fits(zgatectl("doctor"))
    assert text.startswith("warn a title  words words")
    assert "     -> do this" in text
    assert text.splitlines()[-1] == "0 ok, 1 to look at (a title)"
    zgatectl("doctor", "--strict", code=1)


def test_the_worst_counts() -> None:
    assert report_of([]).verdict is Verdict.OK
    assert report_of([skip("a", "a", "x")]).verdict is Verdict.OK
    assert report_of([warn("a", "a", "x", "y"), skip("a", "a", "x")]).verdict is Verdict.WARN


def test_a_units_configuration_is_read_as_the_unit_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zgate_cli import unit_files

    for name in ("CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(unit_files, "ETC", tmp_path)
    monkeypatch.setattr(unit_files, "RUN", tmp_path / "run")
    config = tmp_path / "agents" / "laptop.yaml"
    credentials, runtime = unit_files.agent_folders(config)
    for folder in (credentials, runtime, config.parent):
        folder.mkdir(parents=True)
    config.touch()
    assert unit_files.only_agent() == config
    with unit_files.as_unit(credentials=credentials, runtime=runtime):
        assert os.environ["CREDENTIALS_DIRECTORY"] == str(credentials)
        assert os.environ["RUNTIME_DIRECTORY"] == str(runtime)
    assert "CREDENTIALS_DIRECTORY" not in os.environ
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/given")
    with unit_files.as_unit(credentials=credentials):
        assert os.environ["CREDENTIALS_DIRECTORY"] == "/given"
    (config.parent / "other.yaml").touch()
    assert unit_files.only_agent() is None


@pytest.mark.parametrize("alert", sorted({*NAMES, "map_flows"}))
def test_every_alert_has_a_page(alert: str) -> None:
    page = Path(__file__).parents[3] / "docs" / "runbooks" / runbook_of(alert)
    assert page.is_file()
