"""What may be configured, and how mistakes are told."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from zgate_agent.config import (
    AgentConfig,
    DnsMode,
    Mode,
    OnDisconnect,
    load_config,
)
from zgate_config import ConfigError
from zgate_config.dialling import GatewayAddress

LEAST = "gateway: gw.example\nca: /c\ncertificate: /a\nkey: /k\n"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return file


def test_four_lines_are_enough(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST), {})
    assert config.gateway == GatewayAddress("gw.example", 443)
    assert config.expected_name == "gw.example"
    assert (config.mode, config.routes) == (Mode.SPLIT, None)
    assert config.on_disconnect is OnDisconnect.BLOCK
    assert config.tun.mtu_bytes == 1420


def test_json_is_read_too(tmp_path: Path) -> None:
    text = {"gateway": "[2001:db8::1]:8443", "ca": "/c", "certificate": "/a", "key": "/k"}
    config = load_config(write(tmp_path, json.dumps(text)), {})
    assert config.gateway == GatewayAddress("2001:db8::1", 8443)


def test_everything_can_be_set(tmp_path: Path) -> None:
    more = (
        "server_name: other.example\nmode: split\nroutes: [10.20.0.0/16, fd00::/8]\n"
        "on_disconnect: release\ntun: {name: vpn0, mtu_bytes: 1300}\nruntime_dir: /tmp/x\n"
        "connect_timeout_s: 5\nidle_timeout_s: 60\nkeepalive_s: 20\nengine: python\n"
        "congestion: reno\nlog: {level: debug}\n"
    )
    config = load_config(write(tmp_path, LEAST + more), {})
    assert config.expected_name == "other.example"
    assert config.routes == (ip_network("10.20.0.0/16"), ip_network("fd00::/8"))
    assert (config.tun.name, config.tun.mtu_bytes) == ("vpn0", 1300)
    assert config.log.level == "debug"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("gatway: x\n", "5: gatway: expected one of gateways, gateway,"),
        ("verify: false\n", "5: verify: expected one of"),
        ("mode: everything\n", "5: mode: expected 'split' or 'full', got \"everything\""),
        ("routes: [10.20.0.1/16]\n", "5: routes[0]: expected a CIDR without host bits"),
        ("mode: full\nroutes: [10.0.0.0/8]\n", "6: routes: expected no routes with mode: full"),
        ("tun: {mtu_bytes: 1279}\n", "5: tun.mtu_bytes: expected"),
        ("tun: {name: this-name-is-too-long}\n", "5: tun.name: expected an interface name"),
        ("idle_timeout_s: 10\n", "keepalive_s: expected less than idle_timeout_s (10)"),
        ("keepalive_s: ten\n", "5: keepalive_s: expected"),
        ("log: {level: loud}\n", "5: log.level: expected"),
        ("dns: maybe\n", "5: dns: expected 'auto', 'resolved', 'resolv.conf' or 'off'"),
        ("services: [{id: a, virtualIp: x}]\n", "5: services[0].virtualIp: expected an IP"),
        ("intermediate_server: {host: gw}\n", "gateway: expected one of gateways, gateway"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, more: str, message: str) -> None:
    file = write(tmp_path, LEAST + more)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway: expected one of .*, got none"):
        load_config(write(tmp_path, LEAST.partition("\n")[2]), {})
    with pytest.raises(ConfigError, match="ca: expected a value, got nothing"):
        load_config(write(tmp_path, LEAST.replace("ca: /c\n", "")), {})


def test_the_other_shape_in_json(tmp_path: Path) -> None:
    text = {
        "intermediate_server": {"host": "gw.example", "port": 4433},
        "services": [{"id": "pacs", "virtualIp": "10.101.0.1"}, {"id": "echo"}],
        **{"ca": "/c", "certificate": "/a", "key": "/k"},
    }
    config = load_config(write(tmp_path, json.dumps(text)), {})
    assert config.gateway == GatewayAddress("gw.example", 4433)
    assert config.expected_name == "gw.example"
    assert [(one.id, one.virtual_ip) for one in config.services] == [
        ("pacs", ip_address("10.101.0.1")),
        ("echo", None),
    ]


def test_names_are_resolved_as_the_host_does_unless_told(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST), {})
    assert (config.dns, config.resolv_conf) == (DnsMode.AUTO, None)
    more = "dns: off\nresolv_conf: /tmp/resolv.conf\n"
    config = load_config(write(tmp_path, LEAST + more), {})
    assert (config.dns, config.resolv_conf) == (DnsMode.OFF, Path("/tmp/resolv.conf"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: expected a readable file"):
        load_config(tmp_path / "none.yaml", {})


def test_nothing_switches_verification_off() -> None:
    words = ("insecure", "verify", "skip", "trust")
    assert not [name for name in AgentConfig.model_fields if any(word in name for word in words)]


FLAGS = {"gateway": "gw.example:444", "ca": "/c", "certificate": "/a", "key": "/k"}


def test_flags_alone() -> None:
    config = load_config(None, {**FLAGS, "tun": {"name": "vpn0"}, "routes": ["10.0.0.0/8"]})
    assert (config.gateway.port, config.tun.name) == (444, "vpn0")
    assert config.routes == (ip_network("10.0.0.0/8"),)


def test_flags_replace_what_the_file_says(tmp_path: Path) -> None:
    file = write(tmp_path, LEAST + "tun: {name: vpn0, mtu_bytes: 1300}\n")
    config = load_config(file, {"gateway": "other.example", "tun": {"name": "vpn1"}})
    assert config.gateway.host == "other.example"
    assert (config.tun.name, config.tun.mtu_bytes) == ("vpn1", 1300)


def test_mistakes_in_flags() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {**FLAGS, "gateway": "gw.example:0"})
    assert str(caught.value).startswith("command line: gateway: expected HOST or HOST:PORT")


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(write(tmp_path, "- a\n"), {"gateway": "gw.example"})


SEVERAL = LEAST.replace("gateway: gw.example", "gateways: [gw.example, 'two.example:8443']")


def test_several_gateways_in_their_order(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SEVERAL), {})
    first, second = config.all_gateways
    assert config.gateway == first == GatewayAddress("gw.example", 443)
    assert second == GatewayAddress("two.example", 8443)
    assert config.expected_name_of(second) == "two.example"


def test_the_same_gateway_twice_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gateways: expected each gateway once"):
        load_config(write(tmp_path, SEVERAL.replace("two.example:8443", "gw.example:443")), {})
