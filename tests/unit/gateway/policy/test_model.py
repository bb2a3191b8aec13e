"""Every key of a rule: what is accepted, and the line that says what is wrong."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from zgate_config import ConfigError
from zgate_gateway.policy import PolicySet

CIDR = {"id": "x", "type": "ip_cidr", "action": "allow", "destinations": ["10.0.0.0/8"]}


def load(rule):
    return PolicySet.parse(
        json.dumps({"version": "1.0", "clients": {"a": {"rules": [rule]}}}), "p.yaml"
    ).rules_for("a")[0]


def mistakes(rule):
    with pytest.raises(ConfigError) as caught:
        load(rule)
    prefix = "p.yaml:1: clients.a.rules[0]"
    assert all(line.startswith(prefix) for line in caught.value.lines)
    return [line.removeprefix(prefix).removeprefix(".") for line in caught.value.lines]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": 7}, "id: expected text, got 7 (put it in quotes)"),
        ({"id": ""}, 'id: expected text of at least 1 characters, got ""'),
        ({"type": "ip"}, "type: expected 'ip_cidr', 'service' or 'default', got \"ip\""),
        ({"action": True}, "action: expected 'allow' or 'deny', got true"),
        (
            {"destinations": ["10.1.2.3/8"]},
            "destinations[0]: expected a CIDR without host bits (the network is 10.0.0.0/8), "
            'got "10.1.2.3/8"',
        ),
        (
            {"destinations": ["fe80::1/64"]},
            "destinations[0]: expected a CIDR without host bits (the network is fe80::/64), "
            'got "fe80::1/64"',
        ),
        *[
            (
                {"destinations": [text]},
                "destinations[0]: expected a CIDR such as 10.0.0.0/8 or 2001:db8::/32, "
                f"got {json.dumps(text)}",
            )
            for text in [
                "10.0.0.0/33", "::/129", "10.0.0.0/08", "10.0.0.0/255.0.0.0", "fe80::%eth0/64",
                "example.org", "", "10.0.0.0/8 ", "10.0.0.0/8\n", 10, True, "010.0.0.0/8", "any",
            ]
        ],
        (
            {"destinations": []},
            "destinations: expected a list with entries (at least 1), got an empty list",
        ),
        ({"destinations": "10.0.0.0/8"}, 'destinations: expected a list, got "10.0.0.0/8"'),
        ({"protocols": "tcp"}, 'protocols: expected a list, got "tcp"'),
        *[
            (
                {"protocols": [value]},
                "protocols[0]: expected a protocol: tcp, udp, icmp, icmpv6, sctp, any, "
                f"or a number from 0 to 255, got {json.dumps(value)}",
            )
            for value in ["tpc", 256, -1, "06", True, "", "6 "]
        ],
        *[
            (
                {"ports": [value]},
                "ports[0]: expected a port or a range of ports such as 443 or 8000-8100 "
                f"(0 to 65535), got {json.dumps(value)}",
            )
            for value in [65536, "9-8", "1-65536", "080", "1 - 2", -1, True, 80.5, "http", "1-2-3"]
        ],
        (
            {"ports": [1], "protocols": ["tcp", "icmp"]},
            "protocols: expected only protocols that have ports (tcp, udp, sctp) beside ports, "
            'got "icmp" in protocols[1]',
        ),
        (
            {"ports": [1], "protocols": ["any"]},
            "protocols: expected only protocols that have ports (tcp, udp, sctp) beside ports, "
            'got "any" in protocols[0]',
        ),
        *[
            (
                {"icmp_types": [value]},
                "icmp_types[0]: expected an ICMP type: echo-request, echo-reply, "
                "destination-unreachable, time-exceeded, parameter-problem, a number, "
                f'or "type/code", got {json.dumps(value)}',
            )
            for value in [256, "3/256", "ping", "3/", True, 3.4]
        ],
        (
            {"icmp_types": [8], "protocols": ["tcp"]},
            "protocols: expected only ICMP protocols (icmp, icmpv6) beside icmp_types, "
            'got "tcp" in protocols[0]',
        ),
        (
            {"icmp_types": [8], "ports": [1]},
            "icmp_types: expected ports or icmp_types, not both in one rule, got both",
        ),
        ({"metadata": [1]}, "metadata: expected a mapping, got a list"),
        (
            {"port": [1]},
            "port: expected one of id, type, action, destinations, services, protocols, ports, "
            "icmp_types, not_before, expires_at, metadata; "
            'got the unknown key "port" (did you mean ports?)',
        ),
        *[
            (
                {"expires_at": value},
                "expires_at: expected a timestamp with its offset from UTC, such as "
                f"2026-12-05T18:00:00+01:00 or ...Z, got {json.dumps(value, ensure_ascii=False)}",
            )
            for value in [
                "2030-01-01", "2030-01-01T00:00:00", "2030-02-30T00:00:00Z", 1893456000, True,
                "2030-01-01T24:00:00Z", "2030-01-01T00:00Z", "2030-01-01T00:00:00+1",
                "2030-01-01T00:00:00+25:00", "0001-01-01T00:00:00+01:00", "", "tomorrow",
                "2030-01-01T00:00:00Z\n", "2030-W01-1T00:00:00Z", "٢030-01-01T00:00:00Z",
            ]
        ],
        *[
            (
                {"not_before": "2030-01-01T01:00:00+01:00", "expires_at": value},
                f'expires_at: expected a time after not_before, got "{value}"',
            )
            for value in ["2030-01-01T00:00:00Z", "2030-01-01T00:30:00+01:00"]
        ],
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(changes, expected):
    assert mistakes({**CIDR, **changes}) == [expected]


@pytest.mark.parametrize("key", ["id", "type", "action"])
def test_required_keys(key):
    rule = {name: value for name, value in CIDR.items() if name != key}
    assert f"{key}: expected a value, got nothing (this key is required)" in mistakes(rule)


def test_ip_cidr_needs_destinations():
    assert mistakes({"id": "x", "type": "ip_cidr", "action": "deny"}) == [
        "destinations: expected a list of CIDRs (type ip_cidr needs one), got nothing"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("destinations", ["10.0.0.0/8"]),
        ("protocols", ["tcp"]),
        ("ports", [1]),
        ("icmp_types", [8]),
    ],
)
def test_default_takes_no_match(key, value):
    assert mistakes({"id": "x", "type": "default", "action": "deny", key: value}) == [
        f"{key}: expected no such key in a rule of type default, which matches everything, "
        "got a list"
    ]


def test_several_mistakes_are_all_told():
    assert len(mistakes({**CIDR, "ports": [70000, "x"], "action": "drop"})) == 3


def test_what_is_accepted():
    rule = load(
        {
            **CIDR,
            "destinations": ["10.0.0.5", "::1", "0.0.0.0/0", "::/0"],
            "protocols": ["TCP", "udp", 6, "132"],
            "ports": [0, "443", "8000-8100", 65535],
            "metadata": {"anything": [1, {"x": None}]},
        }
    )
    assert rule.protocols == ("tcp", "udp", "6", "132")
    assert rule.ports == ("0", "443", "8000-8100", "65535")
    assert rule.metadata == {"anything": [1, {"x": None}]}
    types = load({**CIDR, "icmp_types": [8, "3/4", "Echo-Request"], "protocols": ["icmp", 58]})
    assert types.icmp_types == ("8", "3/4", "echo-request")


@pytest.mark.parametrize(
    "text",
    ["2030-01-01T01:00:00+01:00", "2030-01-01t00:00:00z", "2029-12-31 19:00:00.000-05:00"],
)
def test_times_are_the_same_however_they_are_written(text):
    rule = load({"id": "x", "type": "default", "action": "allow", "expires_at": text})
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    assert (rule.not_before, rule.expires_at) == (None, ends)
    assert rule.expires_at.tzinfo is UTC
    assert rule.holds(ends - timedelta(microseconds=1))
    assert not rule.holds(ends)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "version: expected a value, got nothing (this key is required)"),
        ("version: 1", 'version: expected the version "1.0", got 1'),
        ('version: "2.0"', 'version: expected the version "1.0", got "2.0"'),
        (
            'version: "1.0"\nmetadata: {name: 1}',
            "metadata.name: expected text, got 1 (put it in quotes)",
        ),
        ('version: "1.0"\nclients:', "clients: expected a mapping, got nothing"),
        (
            'version: "1.0"\nclients: {a: {rules: {}}}',
            "clients.a.rules: expected a list, got a mapping",
        ),
        (
            'version: "1.0"\nclients: {a: {rule: []}}',
            "clients.a.rule: expected one of description, rules, limits; "
            'got the unknown key "rule" (did you mean rules?)',
        ),
        (
            'version: "1.0"\ngroups: {" a": {}}',
            'groups." a": expected a name as a certificate can hold it '
            '(this one begins or ends with a blank), got " a"',
        ),
        (
            'version: "1.0"\nclients: {a: {limits: {}}}',
            "clients.a.limits: expected bandwidth_mbit, new_flows_per_s or both, got a mapping",
        ),
        (
            'version: "1.0"\ngroups: {g: {limits: {bandwidth_mbit: 0}}}',
            "groups.g.limits.bandwidth_mbit: expected at least 1, got 0",
        ),
        (
            'version: "1.0"\ndefault_limits: {bandwidth_mbit: 100001}',
            "default_limits.bandwidth_mbit: expected at most 100000, got 100001",
        ),
        (
            'version: "1.0"\ndefault_limits: {new_flows_per_s: 1.5}',
            "default_limits.new_flows_per_s: expected a whole number, got 1.5",
        ),
        (
            'version: "1.0"\ndefault_limits: {new_flows_per_s: "9"}',
            'default_limits.new_flows_per_s: expected a whole number, got "9"',
        ),
        (
            'version: "1.0"\nclients: {a: {limits: {bandwidth: 5}}}',
            "clients.a.limits.bandwidth: expected one of bandwidth_mbit, new_flows_per_s; "
            'got the unknown key "bandwidth" (did you mean bandwidth_mbit?)',
        ),
        (
            'version: "1.0"\ndefault_action: reject',
            "default_action: expected 'allow' or 'deny', got \"reject\"",
        ),
    ],
)
def test_the_rest_of_the_file(text, expected):
    with pytest.raises(ConfigError) as caught:
        PolicySet.parse(text, "p.yaml")
    (line,) = caught.value.lines
    assert line.partition(": ")[2] == expected


@pytest.mark.parametrize("version", ['"1.0"', "'1.0'", "1.0"])
def test_the_version_may_stand_without_quotes(version):
    assert PolicySet.parse(f"version: {version}\nmetadata: {{name: n, any: 1}}\n").name == "n"
