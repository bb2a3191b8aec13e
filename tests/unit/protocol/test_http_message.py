import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.errors import H3Error, MalformedMessage
from zgate_protocol.http_message import (
    Header,
    NotServed,
    Request,
    build_refusal,
    build_request,
    build_success,
    parse_request,
    parse_response,
)

GOOD = build_request("gateway.example", "/ip")


def without(name: bytes) -> list[Header]:
    return [header for header in GOOD if header[0] != name]


def changed(name: bytes, value: bytes) -> list[Header]:
    return [(key, value if key == name else old) for key, old in GOOD]


def test_a_request_is_read_back() -> None:
    assert parse_request(GOOD) == Request("gateway.example", "/ip", capsule_protocol=True)


@pytest.mark.parametrize("name", [b":scheme", b":path", b":authority", b":method"])
def test_each_pseudo_header_is_needed(name: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_request(without(name))
    assert caught.value.error_code is H3Error.MESSAGE_ERROR


@pytest.mark.parametrize("name", [b":scheme", b":path", b":authority"])
def test_no_pseudo_header_is_empty(name: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_request(changed(name, b""))


MALFORMED: dict[str, list[Header]] = {
    "content-length": [*GOOD, (b"content-length", b"0")],
    "content-type": [*GOOD, (b"content-type", b"text/plain")],
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "connection": [*GOOD, (b"connection", b"close")],
    "upper case": [*GOOD, (b"X-Foo", b"bar")],
    "empty name": [*GOOD, (b"", b"bar")],
    "pseudo-header after a field": [*GOOD, (b":foo", b"bar")],
    "pseudo-header twice": [GOOD[0], *GOOD],
    "unknown pseudo-header": [(b":foo", b"bar"), *GOOD],
    "response pseudo-header": [(b":status", b"200"), *GOOD],
    "protocol without CONNECT": changed(b":method", b"GET"),
    "space in the path": changed(b":path", b"/a b"),
    "path not ASCII": changed(b":path", b"/\xff"),
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests(headers: list[Header]) -> None:
    with pytest.raises(MalformedMessage):
        parse_request(headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")], 404),
        ([(b":method", b"CONNECT"), (b":authority", b"a:443")], 501),
        (changed(b":protocol", b"connect-udp"), 501),
    ],
)
def test_requests_for_somebody_else(headers: list[Header], status: int) -> None:
    with pytest.raises(NotServed) as caught:
        parse_request(headers)
    assert caught.value.status == status


@pytest.mark.parametrize("arguments", [("", "/", "https"), ("a", "", "https"), ("a", "/", "")])
def test_no_request_is_built_from_nothing(arguments: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        build_request(*arguments)


def test_responses_are_read_back() -> None:
    assert parse_response(build_success()).is_success
    refusal = parse_response(build_refusal(503, "zgate; error=dns_error"))
    assert (refusal.status, refusal.is_success) == (503, False)
    assert refusal.proxy_status == "zgate; error=dns_error"


def test_a_refusal_does_not_start_the_capsule_protocol() -> None:
    assert not any(name == b"capsule-protocol" for name, _ in build_refusal(403))


@pytest.mark.parametrize("status", [100, 103, 199])
def test_interim(status: int) -> None:
    assert parse_response([(b":status", str(status).encode())]).is_interim


@pytest.mark.parametrize("status", [200, 201, 299])
def test_success(status: int) -> None:
    assert parse_response([(b":status", str(status).encode())]).is_success


@pytest.mark.parametrize("status", [b"", b"20", b"2000", b"abc", b"099", b"600", b"101", b"+20"])
def test_no_status(status: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_response([(b":status", status)])


@pytest.mark.parametrize("status", [200, 600, 100])
def test_only_failures_refuse(status: int) -> None:
    with pytest.raises(ValueError, match="refuse"):
        build_refusal(status)


def test_content_fields_are_fine_in_a_refusal() -> None:
    assert parse_response([(b":status", b"404"), (b"content-length", b"0")]).status == 404


names = st.sampled_from([name for name, _ in GOOD] + [b":status", b"content-type", b"x"])
header_lists = st.lists(st.tuples(st.one_of(names, st.binary(max_size=9)), st.binary(max_size=9)))


@given(header_lists)
def test_random_headers_never_surprise(headers: list[Header]) -> None:
    for parse in (parse_request, parse_response):
        try:
            parse(headers)
        except (MalformedMessage, NotServed) as error:
            assert error.reason


def test_requests_truncated_at_every_header() -> None:
    for length in range(len(GOOD) - 1):
        with pytest.raises((MalformedMessage, NotServed)):
            parse_request(GOOD[:length])
