"""Rules, runbooks and dashboard: what Prometheus thinks of them, and whether they fit the metrics.

Whether the live gateway's metrics fit is `tests/e2e/test_prometheus.py`'s matter.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from zgate_gateway.metrics.collector import make_registry
from zgate_gateway.metrics.snapshot import MetricsSnapshot
from zgate_gateway.problems import MAP_PREFIX, NAMES

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
SUFFIXES = {"counter": "_total", "info": "_info"}
#: Prometheus' own.
FOREIGN = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
EVERYWHERE = {"job", "instance"}
#: Of the language, where no bracket follows at once.
WORDS = {"by", "without", "on", "ignoring", "unless", "and", "or", "bool"}
WORDS |= {"sum", "min", "max", "group"}
#: Where the Debian package has docs/, and how an alert finds pages that are elsewhere.
INSTALLED = "file:///usr/share/doc/zgate"
ELSEWHERE = '{{ with query "zgate_runbooks_info" }}{{ . | first | label "url" }}'


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return rules("zgate-alerts.yml")


# What promtool says.


def test_the_example_configuration_and_its_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_the_documented_configuration(tmp_path: Path) -> None:
    """The files of docs/metrics.md, where it has them put, with links to the rules."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    files = dict(re.findall(r"^```yaml\n# /etc/prometheus/(\S+)\n(.*?)^```", text, re.S | re.M))
    assert set(files) == {"prometheus.yml", "rules/zgate-runbooks.yml"}
    (tmp_path / "rules").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (links,) = re.findall(r"^sudo ln -s (.*) /etc/prometheus/rules/$", text, re.MULTILINE)
    for link in links.split():
        source = PROMETHEUS / link.removeprefix("/usr/share/zgate/prometheus/")
        (tmp_path / "rules" / source.name).symlink_to(source)
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
    ours = yaml.safe_load((PROMETHEUS / "zgate-runbooks.yml").read_text())
    assert yaml.safe_load(files["rules/zgate-runbooks.yml"]) == ours


def test_every_rule_does_what_it_says() -> None:
    files = sorted(path.name for path in (PROMETHEUS / "tests").iterdir())
    promtool("test", "rules", *files, cwd=PROMETHEUS / "tests")


def test_every_rule_is_among_the_tests() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]
    tested = {one["name"]: one["promql_expr_test"][0] for one in tests}
    assert list(tested) == [rule["alert"] for rule in alerts()]
    for name, test in tested.items():
        assert name in test["expr"]
        # Where no target is left, none has a name.
        which = 'job="zgate"' if name == "ZgateNoTarget" else 'instance="sick"'
        assert all(which in one["labels"] for one in test["exp_samples"])
        assert test["exp_samples"], f"{name} never fires"
    waits = {rule["alert"] for rule in alerts() if "for" in rule}
    pending = {one["name"] for one in tests if "pending" in str(one["promql_expr_test"][1:])}
    assert pending == waits
    for one in tests:  # and there is somebody for whom it does not
        series = [entry["series"] for entry in one["input_series"]]
        assert any('instance="well"' in text for text in series), one["name"]
    recorded = (PROMETHEUS / "tests" / "recording.yml").read_text()
    for rule in [*rules("zgate-recording.yml"), *rules("zgate-runbooks.yml")]:
        assert rule["record"] in recorded


def test_nothing_that_lasts_for_a_moment_is_an_alert() -> None:
    """What is counted over a range lasts by itself; all else waits longer than a restart takes."""
    for rule in alerts():
        counted = re.search(r"\b(increase|changes)\(\w+\[1[05]m\]\) > \d+$", rule["expr"])
        assert "for" in rule or counted, rule["alert"]
        assert rule.get("for", "1m") not in ("1s", "5s", "10s", "15s"), rule["alert"]


# Runbooks.


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*names, "README"}
    index = (RUNBOOKS / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", index, re.MULTILINE)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == (
        f"{ELSEWHERE}{{{{ else }}}}{INSTALLED}/runbooks{{{{ end }}}}/{rule['alert']}.md"
    )
    assert rule["alert"] == "ZgateNoTarget" or "$labels.instance" in rule["annotations"]["summary"]
    page = (RUNBOOKS / f"{rule['alert']}.md").read_text()
    assert page.startswith(f"# {rule['alert']}\n\nSeverity: {rule['labels']['severity']}.\n")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["What it means", "How to confirm it", "What to do", "Whom to wake"]


def test_every_problem_of_the_gateway_is_an_alert() -> None:
    asked = {rule["alert"]: rule["expr"] for rule in alerts()}
    for name in NAMES:
        alert = "Zgate" + "".join(word.capitalize() for word in name.split("_"))
        assert f'zgate_alert{{name="{name}"}}' in asked[alert]
    assert f'name=~"{MAP_PREFIX}.+"' in asked["ZgateKernelTableFull"]


# Names and labels.


@cache
def known() -> Mapping[str, set[str]]:
    """Every series that there can be, with its labels."""
    snapshot = MetricsSnapshot("0", "python", ready=True, started_at_s=1)
    found = dict(FOREIGN)
    for family in make_registry(snapshot).collect():
        labels = set(getattr(family, "_labelnames", ()))
        if family.type == "info":
            labels = set(family.samples[0].labels)
        found[family.name + SUFFIXES.get(family.type, "")] = labels
    for rule in rules("zgate-recording.yml"):
        found[rule["record"]] = {
            label for name in selectors(rule["expr"]) for label in found[name[0]]
        }
    return found


def selectors(expression: str) -> Iterator[tuple[str, list[str]]]:
    """The series that an expression asks for, with the labels that it matches."""
    without_ranges = re.sub(r"\[[^\]]*\]", "", expression)
    # Labels of by, on and the like are none.
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", r"\1 ()", without_ranges)
    for found in re.finditer(r"\b([a-zA-Z_][\w:]*)\s*(\{[^}]*\})?(?!\s*\()(?![\w:])", bare):
        name, matchers = found.groups()
        if name in WORDS:
            continue
        before = bare[: found.start()]
        if before.count('"') % 2 or before.count("{") != before.count("}"):
            continue  # within a matcher
        yield name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers or "")


def groupings(expression: str) -> set[str]:
    found = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}


def check_fits(expression: str, where: str) -> None:
    asked = list(selectors(expression))
    assert asked, f"{where}: {expression} asks for nothing"
    for name, labels in asked:
        assert name in known(), f"{where}: there is no {name}"
        unknown = set(labels) - known()[name] - EVERYWHERE
        assert not unknown, f"{where}: {name} has no {unknown}"
    there = EVERYWHERE.union(*(known()[name] for name, _ in asked))
    assert groupings(expression) <= there, f"{where}: {expression}"


@pytest.mark.parametrize("file", ["zgate-alerts.yml", "zgate-recording.yml"])
def test_rules_ask_for_what_there_is(file: str) -> None:
    for rule in rules(file):
        check_fits(rule["expr"], rule.get("alert", rule.get("record")))
        for name in re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))):
            there = {label for asked, _ in selectors(rule["expr"]) for label in known()[asked]}
            assert name in there | EVERYWHERE, f"{rule['alert']}: no label {name}"


# The dashboard.


def dashboard() -> Any:
    return json.loads((ROOT / "deploy" / "grafana" / "zgate.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """What the dashboard asks, with its variables filled in as Grafana does."""
    asked = [(p["title"], target["expr"]) for p in panels() for target in p["targets"]]
    asked += [(one["name"], one["expr"]) for one in dashboard()["annotations"]["list"]]
    return [
        (title, text.replace("$instance", ".+").replace("$__rate_interval", "1m"))
        for title, text in asked
    ]


def test_the_dashboard_asks_for_what_there_is() -> None:
    for title, expression in expressions():
        check_fits(expression, title)
        assert "$" not in expression


def test_prometheus_can_read_every_question(tmp_path: Path) -> None:
    asked = [
        {"record": f"asked:{number}", "expr": expression}
        for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}))
    promtool("check", "rules", "--lint=none", str(file))


def test_legends_name_labels_that_there_are() -> None:
    for panel in panels():
        for target in panel["targets"]:
            there = {label for name, _ in selectors(target["expr"]) for label in known()[name]}
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= there | EVERYWHERE, panel["title"]


def test_panels_have_places_of_their_own() -> None:
    cells = set[tuple[int, int]]()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= own
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_documented_labels_are_the_metrics_own() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    section = text.partition("## All metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(zgate_\w+)` \|([^|]*)\|", section, re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert told == {name: labels for name, labels in known().items() if name.startswith("zgate_")}
