"""A real Prometheus watches a real gateway: what it reads and computes, and what makes it shout.

The rules are those of deploy/prometheus; only how long something has to last is shortened.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from e2e_support.world import POLICY, prepare
from zgate_lab.connectors import Connectors
from zgate_lab.deployment import BIN, Deployment
from zgate_lab.internet import Host, Internet
from zgate_lab.private_site import LAN_IPV4, PrivateSite, add_private_sites
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
METRICS_PORT, SPOKE_PORT, PROMETHEUS_PORT = 9464, 9465, 9090
INTERVAL = "500ms"
WAIT_S = 20.0
RIGHTS = f"""\
connectors:
  west:
    services: [web]
    routes: ["{LAN_IPV4}"]
"""
SERVICE = {"id": "web", "protocol": "tcp", "ports": [80], "backend": "10.40.0.5"}


@dataclass
class Watched:
    """A gateway, a connector at a private network, and who watches them."""

    zgate: Deployment
    connectors: Connectors
    site: PrivateSite
    prometheus: Process

    def get(self, port: int, path: str, host: Host | None = None) -> tuple[int, str]:
        """GET from a server on a host's localhost: the gateway's, unless another is named."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with (host or self.zgate.host).namespace.entered():
            connection.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask Prometheus; its data."""
        status, text = self.get(PROMETHEUS_PORT, f"/api/v1/{path}?{urlencode(parameters)}")
        answer = json.loads(text)
        assert (status, answer["status"]) == (200, "success"), text
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return list(self.ask("query", query=expression)["result"])

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}

    def metrics(self) -> str:
        """What Prometheus reads."""
        status, text = self.get(METRICS_PORT, "/metrics")
        assert status == 200
        return text


def _shortened(source: Path) -> str:
    content = yaml.safe_load(source.read_text())
    for group in content["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return yaml.safe_dump(content)


def _start_prometheus(internet: Internet, zgate: Deployment) -> Process:
    directory = internet.lab.directory / "prometheus"
    directory.mkdir()
    for name in ("zgate-alerts.yml", "zgate-recording.yml"):
        (directory / name).write_text(_shortened(PROMETHEUS / name))
    content = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    content["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(content))
    return zgate.host.namespace.spawn(
        "prometheus",
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
        "--log.level=warn",
    )


@pytest.fixture(scope="module")
def watched(identities: Path) -> Iterator[Watched]:
    with Internet.open() as internet:
        zgate = prepare(internet, identities)
        zgate.policy_file.write_text(POLICY + RIGHTS)
        site = add_private_sites(internet)[0]
        connectors = Connectors(zgate)
        connectors.issue("west")
        zgate.start_gateway()
        made = Watched(zgate, connectors, site, _start_prometheus(internet, zgate))
        zgate.spawn_agent("alice", internet.device1, metrics={"port": SPOKE_PORT})
        start_connector(made)
        zgate.wait_connected("alice", zgate.agents["alice"])

        def is_read() -> bool:
            try:
                return bool(made.query('up{job="zgate"} == 1'))
            except (OSError, ValueError):
                return False  # it does not listen yet, or says that it is not ready

        made.prometheus.wait_for(is_read, WAIT_S, "Prometheus to read the metrics")
        yield made
        zgate.stop()


def start_connector(watched: Watched) -> None:
    watched.connectors.start(
        "west",
        watched.site.connector,
        networks=[{"network": str(LAN_IPV4)}],
        services=[{**SERVICE, "health": {"kind": "none"}}],
        metrics={"port": SPOKE_PORT},
    )


def series(text: str) -> Iterator[tuple[str, set[str]]]:
    """Name and label names of each sample."""
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line).groups()  # type: ignore[union-attr]
            yield (
                name,
                set(re.findall(r'(\w+)="', re.sub(r'"(?:[^"\\]|\\.)*"', '""', labels or ""))),
            )


# What it reads.


def documented(heading: str) -> dict[str, set[str]]:
    """The metrics of a section of docs/metrics.md, with their labels."""
    text = (ROOT / "docs" / "metrics.md").read_text().partition(f"## {heading}\n")[2]
    rows = re.findall(r"^\| `(zgate_\w+)` \|([^|]*)\|", text.partition("\n## ")[0], re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def check_metrics(text: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_and_types_are_as_prometheus_wants_them(watched: Watched) -> None:
    check_metrics(watched.metrics())


def test_the_documented_metrics_are_those_that_are_there(watched: Watched) -> None:
    told = documented("All metrics")
    text = watched.metrics()
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == set(told)
    found = dict(series(text))
    for name, labels in found.items():
        assert labels == told[name], name
    # All but what nothing has happened of yet.
    assert set(told) - set(found) <= {
        "zgate_drain_deadline_timestamp_seconds",
        "zgate_drain_sessions_left",
        "zgate_sessions_refused_total",
        "zgate_registrations_refused_total",
        "zgate_dns_queries_total",
    }


@pytest.mark.parametrize("role", ["agent", "connector"])
def test_an_agent_and_a_connector_that_are_asked(watched: Watched, role: str) -> None:
    host = watched.zgate.internet.device1 if role == "agent" else watched.site.connector
    status, text = watched.get(SPOKE_PORT, "/metrics", host)
    assert status == 200
    check_metrics(text)
    told = {n: one for n, one in documented("Agents and connectors").items() if f"_{role}_" in n}
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == set(told)
    found = dict(series(text))
    assert found == {name: labels for name, labels in told.items() if name in found}
    assert set(told) - set(found) <= {f"zgate_{role}_drops_total"}
    assert re.search(rf'^zgate_{role}_state\{{.*state="connected"\}} 1.0$', text, re.MULTILINE)
    assert watched.get(SPOKE_PORT, "/health", host)[0] == 200


def test_the_numbers_are_those_of_zgatectl(watched: Watched) -> None:
    status = watched.zgate.ask("status")
    for expression, value in (
        ("zgate_sessions", status["sessions"]),
        ("zgate_policy_revision", status["policy"]["revision"]),
        ('sum(zgate_services{state="up"})', status["services_up"]),
        ("zgate_connectors", status["connectors"]),
        ("sum(zgate_worker_up)", len(status["workers"])),
        ('zgate_handshakes_total{result="completed"}', 2),
    ):
        wait_until(
            lambda e=expression, v=value: [float(o["value"][1]) for o in watched.query(e)] == [v],  # type: ignore[misc]
            WAIT_S,
            f"{expression} to be {value}",
        )


def test_health_and_readiness(watched: Watched) -> None:
    status, text = watched.get(METRICS_PORT, "/ready")
    probe = json.loads(text)
    assert (status, probe["ok"], probe["because"]) == (200, True, [])
    assert probe["checks"] == dict.fromkeys(("state", "bpf", "policy", "store", "problems"), True)
    assert watched.get(METRICS_PORT, "/health")[0] == 200


# What it computes.


def test_every_rule_can_be_computed(watched: Watched) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(one["health"] == "ok" for one in rules()), WAIT_S, "all rules")
    assert len(rules()) > 40


#: Panels that show nothing while nothing has happened: no drop, no alert, no question for names.
QUIET = {
    "What lasts now",
    "What is missing to be ready",
    "Drops by reason",
    "Sessions, and those that a drain waits for",
    "Comings and goings",
    "What XDP dropped",
    "Packets that are nobody's, resets, failed sends",
    "Questions for names",
    "Sessions by worker",
}


def test_every_question_of_the_dashboard_can_be_answered(watched: Watched) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "zgate.json").read_text())
    asked = [
        (panel["title"], target["expr"].replace("$instance", ".+"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]

    def silent() -> set[str]:
        return {
            title
            for title, expression in asked
            if not watched.query(re.sub(r"\[(\dm|\$__rate_interval)\]", "[5s]", expression))
        }

    wait_until(lambda: silent() <= QUIET, WAIT_S, "panels to show something")


# What somebody who was woken types.

#: Nobody was refused yet.
MAY_BE_SILENT = ("grep session_refused", "grep session_down")
#: A lab has no systemd.
ELSEWHERE = ("systemctl", "journalctl")


def runbook_commands() -> Iterator[str]:
    """Each once, as the pages have it; but for those that tests/e2e/test_zgatectl_docs.py runs."""
    tested = (ROOT / "docs" / "zgatectl.md").read_text()
    found = set[str]()
    for page in sorted((ROOT / "docs" / "runbooks").glob("Zgate*.md")):
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            found.update(block.splitlines())
    for line in sorted(found):
        is_ours = re.search(r"zgate|946\d|:53\b", line) and f"$ {line}\n" not in tested
        if is_ours and not line.startswith(ELSEWHERE):
            yield line


@pytest.mark.parametrize("line", list(runbook_commands()))
def test_a_command_of_the_runbooks(watched: Watched, line: str) -> None:
    zgate = watched.zgate
    places = {
        "/var/lib/zgate/audit.jsonl": zgate.audit_file,
        "/var/lib/zgate/pki": zgate.pki,
        "/var/lib/zgate": zgate.directory / "state",
        "/run/zgate": zgate.directory / "run",
        "/etc/zgate/policy.yaml": zgate.policy_file,
        "/etc/zgate": zgate.directory,
        "CLIENT": "alice",
        "CONNECTOR": "west",
        "DESTINATION": zgate.internet.office.ipv4,
    }
    here = re.sub("|".join(places), lambda found: str(places[found[0]]), line)
    shell = f"PATH={BIN}:$PATH; export ZGATE_SOCKET={zgate.socket}; {here}"
    done = zgate.host.namespace.run("bash", "-c", shell, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout or line.startswith(MAY_BE_SILENT), done
    assert not done.stderr or line.startswith("curl "), done.stderr


# What makes it shout. From here on things are broken; the last one stays so.


def test_all_is_quiet_while_all_is_well(watched: Watched) -> None:
    wait_until(lambda: not watched.firing(), WAIT_S, "all alerts to end")


def test_a_connector_that_goes_is_an_alert_until_it_comes_back(watched: Watched) -> None:
    wait_until(lambda: watched.query('zgate_services{state="up"} == 1'), WAIT_S, "the service")
    watched.connectors.stop("west")
    expected = {"ZgateNetworkUnreachable", "ZgateServicesLost"}
    wait_until(lambda: expected <= watched.firing(), WAIT_S, f"{expected}, by {watched.firing()}")
    told = {
        one["labels"]["alertname"]: one
        for one in watched.ask("alerts")["alerts"]
        if one["state"] == "firing"
    }
    alert = told["ZgateNetworkUnreachable"]
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == (
        "No connector leads to a network behind 127.0.0.1:9464"
    )
    page = alert["annotations"]["runbook_url"].removeprefix("file:///usr/share/doc/zgate/")
    assert (ROOT / "docs" / page).is_file()
    start_connector(watched)
    wait_until(lambda: not expected & watched.firing(), WAIT_S, "the alerts to end")


def counters(text: str) -> dict[str, float]:
    """Those that only a new daemon sets back: not a process's, nor a session's."""
    names = set(re.findall(r"^# TYPE (\w+_total) counter$", text, re.MULTILINE))
    names -= {"zgate_process_cpu_seconds_total"}
    pairs = (line.rpartition(" ")[::2] for line in text.splitlines() if not line.startswith("#"))
    return {
        one: float(value)
        for one, value in pairs
        if one.partition("{")[0] in names and not one.startswith(("zgate_client_", "zgate_offer_"))
    }


def test_no_counter_falls_when_a_worker_is_killed(watched: Watched) -> None:
    """Prometheus would take that for a restart, and the whole count for what came since."""
    restarts = "sum(zgate_worker_restarts_total)"
    seen = counters(watched.metrics())
    assert len(seen) > 40
    os.kill(watched.zgate.ask("status")["workers"][0]["pid"], signal.SIGKILL)

    def is_over() -> bool:
        now = counters(watched.metrics())
        fallen = {one: value for one, value in seen.items() if now.get(one, 0.0) < value}
        assert not fallen
        seen.update(now)
        up = watched.query("zgate_sessions == 2 and on () min(zgate_worker_up) == 1")
        return bool(up and watched.query(f"{restarts} == 1"))

    wait_until(is_over, WAIT_S, "worker and sessions to be back")


def test_programs_that_somebody_takes_from_the_tun(watched: Watched) -> None:
    """What is not judged is not forwarded: users are cut off, and somebody is woken."""
    watched.zgate.host.namespace.run("tc", "filter", "del", "dev", "zgate0", "ingress")

    def because() -> list[str]:
        status, text = watched.get(METRICS_PORT, "/ready")
        probe = json.loads(text)
        return probe["because"] if status == 503 and probe["checks"]["bpf"] is False else []

    (reason,) = wait_until(because, WAIT_S, "/ready to say no")
    assert "is not what decides at ingress (found none)" in reason
    wait_until(lambda: "ZgateNotReady" in watched.firing(), WAIT_S, "the alert")
    assert watched.query('zgate_ready_check{check="bpf"} == 0')
