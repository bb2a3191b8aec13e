"""What may be configured, in both shapes, and how mistakes are told."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config import ConfigError
from zgate_config.dialling import GatewayAddress
from zgate_connector.config import (
    Backend,
    ConnectorConfig,
    HealthKind,
    PortRange,
    Transport,
    default_runtime_dir,
    load_config,
    parse_backend,
    parse_ports,
)

FILES = "ca: /c\ncertificate: /a\nkey: /k\n"
ECHO = 'services: [{id: echo, protocol: udp, backend: "127.0.0.1:9999"}]\n'
LEAST = f"gateway: gw.example\n{FILES}{ECHO}"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "connector.yaml"
    file.write_text(text)
    return file


def load(tmp_path: Path, text: str) -> ConnectorConfig:
    return load_config(write(tmp_path, text), {})


def test_our_own_shape(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"gateways: [gw.example, '192.0.2.7:8443']\n{FILES}"
        "services:\n"
        "  - {id: pacs, protocol: tcp, ports: [104, 11112, 8000-8010], backend: 10.0.5.9}\n"
        '  - {id: echo, protocol: udp, ports: [9999], backend: "127.0.0.1:7",'
        " health: {kind: udp, interval_s: 1, probe_hex: 0a0b}}\n"
        "networks: [10.20.0.0/16, {network: 'fd00:20::/64', masquerade: false}]\n",
    )
    assert config.all_gateways == (GatewayAddress("gw.example"), GatewayAddress("192.0.2.7", 8443))
    pacs, echo = config.services
    assert pacs.ports == (PortRange(104, 104), PortRange(8000, 8010), PortRange(11112, 11112))
    assert pacs.backend == Backend("10.0.5.9", None)
    assert (pacs.backend_port(104), pacs.health_kind, pacs.health_port) == (
        104,
        HealthKind.TCP,
        104,
    )
    assert (echo.backend_port(9999), echo.health_kind) == (7, HealthKind.UDP)
    assert (echo.health_port, echo.health.probe_hex) == (7, b"\x0a\x0b")
    assert config.own_networks == (ip_network("10.20.0.0/16"), ip_network("fd00:20::/64"))
    assert [one.masquerade for one in config.networks] == [True, False]
    limits = config.limits
    assert (limits.new_flows_per_s, limits.open_flows_per_client) == (10, 256)
    assert (limits.buffer_bytes_per_flow, limits.max_flows) == (262144, 4096)
    assert (config.keepalive_s, config.idle_timeout_s) == (10, 30)


def test_the_other_shape_in_json(tmp_path: Path) -> None:
    text = {
        "intermediate_server": {"host": "gw.example", "port": 4433},
        "services": [{"id": "echo", "backend": "127.0.0.1:9999", "protocol": "UDP"}],
    }
    config = load(tmp_path, json.dumps(text))
    assert config.all_gateways == (GatewayAddress("gw.example", 4433),)
    (echo,) = config.services
    assert (echo.protocol, echo.ports) == (Transport.UDP, (PortRange(9999, 9999),))
    assert echo.health_kind is HealthKind.NONE
    assert config.ca == Path("/etc/zgate/ca.crt")


def test_one_id_may_speak_both_protocols(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"gateway: gw\n{FILES}services:\n"
        '  - {id: dns, protocol: tcp, backend: "10.0.0.53:53"}\n'
        '  - {id: dns, protocol: udp, backend: "10.0.0.53:53"}\n',
    )
    assert [one.protocol.number for one in config.services] == [6, 17]


def test_the_name_in_the_certificate(tmp_path: Path) -> None:
    gateway = GatewayAddress("192.0.2.1")
    assert load(tmp_path, LEAST).expected_name(gateway) == "192.0.2.1"
    named = load(tmp_path, f"{LEAST}server_name: gw.example\n")
    assert named.expected_name(gateway) == "gw.example"


def test_flags_replace_what_the_file_says(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST), {"key": "/other", "log": {"level": "debug"}})
    assert (config.key, config.log.level) == (Path("/other"), "debug")


SERVICE = f"gateway: gw\n{FILES}services:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILES + ECHO, "gateways: expected one of gateways, gateway and intermediate_server"),
        (f"{LEAST}gateways: [gw2]\n", "6: gateways: expected one of gateways, gateway and"),
        (f"gateways: [gw, gw]\n{FILES}{ECHO}", "1: gateways: expected each gateway once"),
        (f"gateway: gw\n{FILES}", "services: expected services, or networks, to offer"),
        (LEAST + "gatway: x\n", "6: gatway: expected one of gateways,"),
        (LEAST + "verify: false\n", "6: verify: expected one of"),
        (LEAST + "idle_timeout_s: 10\n", "keepalive_s: expected less than idle_timeout_s (10)"),
        (LEAST + "networks: [10.0.0.1/8]\n", "6: networks[0].network: expected a CIDR without"),
        (LEAST + "networks: [10.0.0.0/8, 10.0.0.0/8]\n", "6: networks: expected each network once"),
        (LEAST + "limits: {new_flows_per_s: 0}\n", "6: limits.new_flows_per_s: expected at least"),
        (LEAST + "tun: {prefix: a-name-too-long}\n", "6: tun.prefix: expected"),
        (SERVICE + "  - {id: a}\n", "6: services[0].backend: expected a value, got nothing"),
        (
            SERVICE + "  - {id: a, backend: 10.0.0.1}\n",
            "6: services[0].ports: expected ports, here",
        ),
        (SERVICE + "  - {id: '', backend: 'h:1'}\n", "6: services[0].id: expected a name of 1 to"),
        (SERVICE + '  - {id: "a\\n", backend: "h:1"}\n', "6: services[0].id: expected a name of"),
        (SERVICE + "  - {id: a, backend: 'h:x'}\n", "6: services[0].backend: expected HOST or"),
        (
            SERVICE + "  - {id: a, protocol: sctp, backend: 'h:1'}\n",
            '6: services[0].protocol: expected tcp or udp, got "sctp"',
        ),
        (
            SERVICE + "  - {id: a, ports: [1-5, 5], backend: h}\n",
            "6: services[0].ports: expected each port once, got 5 beside 1-5",
        ),
        (
            SERVICE + "  - {id: a, ports: [0], backend: h}\n",
            "6: services[0].ports[0]: expected a port",
        ),
        (
            SERVICE + "  - {id: a, backend: 'h:1'}\n  - {id: a, backend: 'h:2'}\n",
            "5: services: expected each id once per protocol, got a again, with tcp",
        ),
        (
            SERVICE
            + "  - {id: a, ports: [1-1000], backend: h}\n  - {id: b, ports: [1-25], backend: h}\n",
            "5: services: expected at most 1024 ports in all, got 1025",
        ),
        (
            SERVICE
            + "".join(
                f"  - {{id: a, protocol: {one}, backend: h, ports: {list(range(1, 80, 2))}}}\n"
                for one in ("tcp", "udp")
            ),
            "5: services: expected at most 64 ranges of ports for an id, tcp and udp together,",
        ),
        (
            SERVICE + "  - {id: a, backend: 'h:1', health: {kind: http}}\n",
            "6: services[0].health.kind: expected 'tcp', 'udp' or 'none'",
        ),
        (
            SERVICE + "  - {id: a, backend: 'h:1', health: {probe_hex: zz}}\n",
            "6: services[0].health.probe_hex: expected bytes in hexadecimal",
        ),
        (
            f"intermediate_server: {{}}\n{FILES}{ECHO}",
            "1: intermediate_server.host: expected a value",
        ),
    ],
)
def test_mistakes_are_one_line_with_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "x", "0", "65536", "5-4", "1-65536", "-1", "1-2-3", None, True]
)
def test_no_ports(text: object) -> None:
    with pytest.raises(ValueError, match="a port or a range"):
        parse_ports(text)


@given(st.text(max_size=40))
def test_any_text_is_a_backend_or_refused(text: str) -> None:
    try:
        backend = parse_backend(text)
    except ValueError:
        return
    assert parse_backend(str(backend)) == backend


def test_an_ordinary_user_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_runtime_dir() == Path("/run/zgate-connector")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_runtime_dir() == Path("/run/user/1000/zgate-connector")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_runtime_dir() == Path("/tmp/zgate-connector-1000")


def test_nothing_switches_verification_off() -> None:
    words = ("insecure", "verify", "skip", "trust")
    names = ConnectorConfig.model_fields
    assert not [name for name in names if any(word in name for word in words)]
