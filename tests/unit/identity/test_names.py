from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from zgate_identity.names import (
    client_groups,
    client_name,
    file_stem,
    general_name,
    name_problem,
    parse_host,
)
from zgate_identity.refusal import CertificateRefused


@pytest.mark.parametrize(
    "name", ["a", "client-1", "alice@example.org", "Ward 3/Bed 4", "李", "x" * 64]
)
def test_good_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "a\tb", " a", "a ", "a\u2028b", "a\ufeff", "\u00a0a"]
)
def test_bad_names(name: str) -> None:
    assert name_problem(name)


@given(st.text(max_size=80))
def test_an_accepted_name_is_one_short_printable_line(name: str) -> None:
    if name_problem(name) is None:
        assert 0 < len(name) <= 64
        assert name.isprintable()
        assert name == name.strip()


@given(st.lists(st.text(max_size=70), max_size=3), st.lists(st.text(max_size=70), max_size=3))
def test_any_subject_gives_a_name_and_groups_or_a_refusal(
    forge: Any, names: list[str], groups: list[str]
) -> None:
    subject = forge.name(names, groups)
    try:
        assert [client_name(subject)] == names
        assert list(client_groups(subject)) == list(dict.fromkeys(groups))
    except CertificateRefused as refused:
        assert len(names) != 1 or any(name_problem(each) for each in names + groups)
        assert refused.text


def test_a_name_that_is_no_text_is_refused() -> None:
    bits = x509.NameAttribute(
        x509.NameOID.X500_UNIQUE_IDENTIFIER, b"\0", x509.name._ASN1Type.BitString
    )
    assert client_groups(x509.Name([bits])) == ()
    with pytest.raises(CertificateRefused):
        client_name(x509.Name([bits]))


@given(st.text(min_size=1, max_size=64))
def test_a_file_stem_stays_in_its_directory_and_is_visible(name: str) -> None:
    stem = file_stem(name)
    assert PurePosixPath(stem).name == stem
    assert not stem.startswith((".", "-"))
    assert stem.isascii()


@pytest.mark.parametrize("good", ["gw", "GW.Example.org", "xn--bcher-kva.example", "1a.example"])
def test_host_names(good: str) -> None:
    assert parse_host(good) == good.lower()
    assert general_name(parse_host(good)) == x509.DNSName(good.lower())


@pytest.mark.parametrize("good", ["192.0.2.1", "2001:db8::1"])
def test_host_addresses(good: str) -> None:
    assert parse_host(good) == ip_address(good)
    assert general_name(parse_host(good)) == x509.IPAddress(ip_address(good))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "*.example",
        "a b",
        "bücher.example",
        "-a",
        "a..b",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "a\n",
    ],
)
def test_what_is_no_host(bad: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        parse_host(bad)
