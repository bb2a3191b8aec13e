import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.structured_field import (
    ProxyError,
    build_proxy_status,
    parse_boolean,
    printable_field,
)


@pytest.mark.parametrize(
    "line", [b"?1", b" ?1 ", b"?1;a", b"?1; a=1;b=2.5", b'?1;a="x\\"y"', b"?1;a=:AQ==:", b"?1;a=?0"]
)
def test_true(line: bytes) -> None:
    assert parse_boolean([line]) is True


def test_false() -> None:
    assert parse_boolean([b"?0"]) is False


NOT_A_BOOLEAN = [b"", b"1", b"true", b"?2", b"?1, ?1", b'"?1"', b"?1 ?1", b"?1;", b"?1;A", b"?1;a="]


@pytest.mark.parametrize(
    "line", [*NOT_A_BOOLEAN, b"?1;a=\xff", b"\xc2\xa0?1", b"?1\n", b"?1;a=(1)"]
)
def test_any_other_type_is_absent(line: bytes) -> None:
    assert parse_boolean([line]) is None


def test_absent_and_repeated() -> None:
    assert parse_boolean([]) is None
    assert parse_boolean([b"?1", b"?1"]) is None


@given(st.lists(st.binary(max_size=20), max_size=3))
def test_random_lines_never_surprise(lines: list[bytes]) -> None:
    assert parse_boolean(lines) in (True, False, None)


def test_truncated_at_every_byte() -> None:
    line = b'?1;a="b"'
    readable = {length for length in range(len(line)) if parse_boolean([line[:length]]) is not None}
    assert readable == {len(b"?1"), len(b"?1;a")}


def test_proxy_status() -> None:
    assert build_proxy_status("zgate", ProxyError.DNS_TIMEOUT) == "zgate; error=dns_timeout"
    assert (
        build_proxy_status("zgate", ProxyError.DNS_ERROR, "no such name", {"rcode": "NXDOMAIN"})
        == 'zgate; error=dns_error; rcode="NXDOMAIN"; details="no such name"'
    )
    assert (
        build_proxy_status("gw 1", ProxyError.DNS_ERROR, parameters={"info-code": 7})
        == '"gw 1"; error=dns_error; info-code=7'
    )


@given(st.text(max_size=400))
def test_details_are_always_one_sf_string(details: str) -> None:
    value = build_proxy_status("zgate", ProxyError.DNS_ERROR, details)
    assert all(" " <= character <= "~" for character in value)
    inner = value.partition("details=")[2][1:-1]
    assert '"' not in inner.replace("\\\\", "").replace('\\"', "")
    assert len(inner) <= 512


def test_a_peers_field_is_safe_to_print() -> None:
    assert printable_field(b"zgate\x1b[31m\xff") == "zgate?[31m?"
    assert len(printable_field(bytes(1000))) == 512
