"""zgatectl why."""

from datetime import UTC, datetime
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_cli.why import ServiceType
from zgate_gateway.api import schemas


def test_it_shows_both_verdicts_and_the_line(zgatectl: Any, fits: Any) -> None:
    text = fits(zgatectl("why", "client-1", "10.20.0.5", "tcp/443"))
    words = " ".join(text.split())
    assert "client client-1 (groups: staff)" in words
    assert "packet 10.100.0.2 -> 10.20.0.5, tcp port 443" in words
    verdict = "deny, rule deny-default, /etc/zgate/policy.yaml:15, revision 7"
    assert f"policy says {verdict}" in words and f"kernel says {verdict}" in words


def test_exit_code_3_if_the_kernel_disagrees(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.kernel_action = schemas.VerdictAction.ALLOW
    result = zgatectl("why", "client-1", "10.20.0.5", "tcp/443", code=3)
    assert "kernel says" in result.stdout and "allow" in result.stdout
    assert "the kernel does not do what the policy says" in result.stdout
    assert result.stderr.startswith("zgatectl: the kernel does not do what the policy says; ")
    as_json = zgatectl("why", "client-1", "10.20.0.5", "tcp/443", "--json", code=3)
    assert '"agree": false' in as_json.stdout


def test_a_client_without_a_session_has_no_kernel_verdict(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.kernel_action = None
    text = zgatectl("why", "client-1", "10.20.0.5").stdout
    assert "kernel says" not in text and "the client has no session" in text


@pytest.mark.parametrize(
    ("arguments", "protocol", "port"),
    [
        (["10.0.0.1"], 1, None),
        (["fd00::1"], 58, None),
        (["fd00::1", "icmp"], 58, None),
        (["10.0.0.1", "icmpv6"], 1, None),
        (["10.0.0.1", "TCP/0"], 6, 0),
        (["10.0.0.1", "17/53"], 17, 53),
        (["10.0.0.1", "sctp/65535"], 132, 65535),
        (["10.0.0.1", "gre"], 47, None),
        (["10.0.0.1", "255"], 255, None),
    ],
)
def test_what_is_asked(
    zgatectl: Any, fake_gateway: Any, arguments: list[str], protocol: int, port: int | None
) -> None:
    zgatectl("why", "client-1", *arguments)
    ((_, query),) = fake_gateway.calls
    assert (query.protocol, query.port, str(query.destination)) == (protocol, port, arguments[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "DESTINATION"),
        (["x" * 256], "no service's name"),
        (["pa\ncs"], "no service's name"),
        (["10.0.0"], "no service's name"),
        (["fd00::1::2"], "no service's name"),
        (["fe80::1%eth0"], "zone"),
        (["10.0.0.0/8"], "no IP address"),
        (["10.0.0.1", "tcp"], "tcp/443"),
        (["10.0.0.1", "tcp/65536"], "port"),
        (["10.0.0.1", "tcp/-1"], "port"),
        (["10.0.0.1", "tcp/\N{ARABIC-INDIC DIGIT ONE}"], "port"),
        (["10.0.0.1", "icmp/8"], "no ports"),
        (["10.0.0.1", "256"], "no protocol"),
        (["10.0.0.1", "nonsense/1"], "no protocol"),
        (["10.0.0.1", ""], "no protocol"),
    ],
)
def test_bad_questions_are_usage_errors(
    zgatectl: Any, fake_gateway: Any, arguments: list[str], named: str
) -> None:
    assert named in zgatectl("why", "client-1", *arguments, code=2).stderr
    assert fake_gateway.calls == []


@pytest.mark.parametrize(
    ("arguments", "family", "protocol", "port"),
    [
        (["pacs", "tcp/104"], 4, 6, 104),
        (["pacs", "tcp/104", "--ipv6"], 6, 6, 104),
        (["echo-1"], 4, 1, None),
        (["-6", "pacs.zgate.internal", "icmp"], 6, 58, None),
        (["Bildarchiv Süd", "udp/53"], 4, 17, 53),
    ],
)
def test_a_name_is_a_service(
    zgatectl: Any, fake_gateway: Any, arguments: list[str], family: int, protocol: int, port: Any
) -> None:
    zgatectl("why", "client-1", *arguments)
    ((_, query),) = fake_gateway.calls
    assert query.destination is None
    assert query.service == next(one for one in arguments if one != "-6")
    assert (query.family, query.protocol, query.port) == (family, protocol, port)


def test_the_service_and_what_narrows_the_client_are_shown(
    zgatectl: Any, fits: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake_gateway.why

    def why(query: schemas.WhyQuery) -> schemas.Why:
        asked = query.model_copy(update={"destination": "10.101.0.1"})
        update = {"service": query.service, "reaches": ["pacs", "wiki"]}
        return real(asked).model_copy(update=update)

    monkeypatch.setattr(fake_gateway, "why", why)
    words = " ".join(fits(zgatectl("why", "client-1", "pacs", "tcp/104")).split())
    assert "packet 10.100.0.2 -> 10.101.0.1 (service pacs), tcp port 104" in words
    assert "its certificate narrows it to services: pacs, wiki" in words


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_bad_names(zgatectl: Any, fake_gateway: Any, name: str) -> None:
    assert "CLIENT is a name" in zgatectl("why", name, "10.0.0.1", code=2).stderr
    assert fake_gateway.calls == []


def test_an_unknown_client(zgatectl: Any) -> None:
    result = zgatectl("why", "who", "10.0.0.1", code=1)
    assert result.stderr == "zgatectl: no client named who; zgatectl clients lists them\n"


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        ({"reason": "POLICY_DEFAULT"}, "deny, no rule matches: the default action, revision 7"),
        ({"reason": "LINK_LOCAL"}, "deny, LINK_LOCAL, revision 7"),
        ({"action": "allow", "reason": "NONE"}, "allow, no rule matches: the default action"),
        ({"action": "allow", "reason": "OWN_DNS"}, "whatever the rules say: the gateway's own DNS"),
    ],
)
def test_verdicts_without_a_rule(
    zgatectl: Any,
    fake_gateway: Any,
    monkeypatch: pytest.MonkeyPatch,
    verdict: dict[str, str],
    text: str,
) -> None:
    def why(query: schemas.WhyQuery) -> schemas.Why:
        return schemas.Why(
            client="c",
            connected=False,
            destination="fe80::1",
            protocol=58,
            compiler=schemas.Verdict(**{"action": "deny", "revision": 7, **verdict}),
            agree=True,
        )

    monkeypatch.setattr(fake_gateway, "why", why)
    words = " ".join(zgatectl("why", "c", "fe80::1").stdout.split())
    assert text in words
    assert "any address -> fe80::1, icmpv6 echo request" in words


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.from_regex(r"[a-z0-9]{0,8}/[0-9]{0,7}"))
def test_any_service_is_understood_or_a_usage_error(text: str) -> None:
    try:
        protocol, port = ServiceType().convert(text, None, None)
    except click.UsageError:
        return
    assert 0 <= protocol <= 255 and (port is None or 0 <= port <= 65535)


# Time and limits.


def at(hour: int) -> datetime:
    return datetime(2026, 3, 1, hour, tzinfo=UTC)


def test_it_says_what_time_has_to_do_with_it(
    zgatectl: Any, fits: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = schemas.WhyQuery(client="client-1", destination="10.20.0.5", protocol=6, port=443)
    plain = fake_gateway.why(query)
    allow, deny = schemas.VerdictAction.ALLOW, schemas.VerdictAction.DENY
    answer = plain.model_copy(
        update={
            "compiler": plain.compiler.model_copy(update={"expires_at": at(18)}),
            "out_of_time": [
                schemas.RuleOutOfTime(rule_id="visit", rule_line=4, action=allow, expired_at=at(9)),
                schemas.RuleOutOfTime(rule_id="late", rule_line=5, action=deny, not_before=at(20)),
            ],
            "next_change": schemas.NextChange(at=at(18), action=allow),
            "limits": schemas.Limits(bandwidth_mbit=50, new_flows_per_s=200),
        }
    )
    monkeypatch.setattr(fake_gateway, "why", lambda _: answer)
    words = " ".join(fits(zgatectl("why", "client-1", "10.20.0.5", "tcp/443")).split())
    for expected in (
        "policy.yaml:15, until 2026-03-01 18:00:00Z, revision 7",
        "rule visit (line 4) would allow it, but expired at 2026-03-01 09:00:00Z",
        "rule late (line 5) would deny it, but does not hold before 2026-03-01 20:00:00Z",
        "changes at 2026-03-01 18:00:00Z: allow, the default action",
        "limits 50 Mbit/s, 200 new flows/s, whatever the rules allow",
    ):
        assert expected in words
