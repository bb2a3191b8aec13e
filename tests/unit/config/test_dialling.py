"""How a gateway's address is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config import ConfigError, StrictModel
from zgate_config.dialling import (
    GatewayAddress,
    IntermediateServer,
    load_with_flags,
    parse_gateway,
    path_setting,
)
from zgate_config.types import CredentialPath


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("gw.example", "gw.example", 443),
        ("GW.Example:8443", "gw.example", 8443),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
    ],
)
def test_gateways(text: str, host: str, port: int) -> None:
    assert parse_gateway(text) == GatewayAddress(host, port)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":443",
            "gw:",
            "gw:0",
            "gw:65536",
            "gw:x",
            "gw:\N{FULLWIDTH DIGIT FOUR}",
            "gw:-1",
            "[::1]443",
            "[::1]:",
        ),
        *("[::1", "[gw]:1", "a b", "http://gw", "gw/x", "fe80::1%eth0", "-a", "1:2:3"),
        *(None, 7, ["gw"]),
    ],
)
def test_no_gateways(text: object) -> None:
    with pytest.raises(ValueError, match="HOST or HOST:PORT"):
        parse_gateway(text)


@given(st.text(max_size=40))
def test_any_text_is_a_gateway_or_refused(text: str) -> None:
    try:
        gateway = parse_gateway(text)
    except ValueError:
        return
    assert 0 < gateway.port <= 65535
    assert parse_gateway(str(gateway)) == gateway


class Files(StrictModel):
    """What a client's file says of its own."""

    ca: CredentialPath
    key: CredentialPath


def test_paths_start_at_the_file_and_those_of_flags_at_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shell = tmp_path / "etc", tmp_path / "home"
    for one in (folder, shell):
        one.mkdir()
    monkeypatch.chdir(shell)
    file = folder / "agent.yaml"
    file.write_text("ca: ca.crt\nkey: keys/own.key")
    for path in (file, Path("../etc/agent.yaml")):
        alone = load_with_flags(path, {}, Files)
        assert alone.ca.resolve() == folder / "ca.crt" and alone.ca.is_absolute()
        flags = {"key": path_setting(Path("other.key"))}
        both = load_with_flags(path, flags, Files)
        assert (both.ca.resolve(), both.key) == (folder / "ca.crt", shell / "other.key")
    assert path_setting(Path("/x/y")) == "/x/y"
    assert path_setting(Path("credential:own.key")) == "credential:own.key"


def test_an_intermediate_server_has_a_port_that_can_be_dialled(tmp_path: Path) -> None:
    class Model(StrictModel):
        intermediate_server: IntermediateServer

    file = tmp_path / "f.yaml"
    file.write_text("intermediate_server: {host: gw.example, port: 0}")
    with pytest.raises(ConfigError, match="port: expected"):
        load_with_flags(file, {}, Model)
