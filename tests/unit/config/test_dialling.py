"""How a gateway's address is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config.dialling import GatewayAddress, parse_gateway


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
