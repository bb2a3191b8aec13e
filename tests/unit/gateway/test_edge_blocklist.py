"""The file of blocked sources."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_config import ConfigError
from zgate_gateway import edge_blocklist
from zgate_gateway.edge_blocklist import merge, read_blocklist


def test_networks_addresses_and_comments(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("# who\n198.51.100.0/24\n\n 192.0.2.7  # one\n2001:db8::/32\n")
    assert [str(one) for one in read_blocklist(path)] == [
        "198.51.100.0/24",
        "192.0.2.7/32",
        "2001:db8::/32",
    ]


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("198.51.100.0/24\n198.51.100.1/24\nexample.org\n")
    with pytest.raises(ConfigError) as caught:
        read_blocklist(path)
    first, second = caught.value.lines
    assert "blocked.txt:2: expected a CIDR without host bits" in first
    assert "got '198.51.100.1/24'" in first
    assert "blocked.txt:3: expected a CIDR such as" in second


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_blocklist(tmp_path / "none")


def test_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_blocklist, "_MAX_BYTES", 10)
    (tmp_path / "large").write_text("192.0.2.0/24")
    with pytest.raises(ConfigError, match="at most"):
        read_blocklist(tmp_path / "large")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_networks_or_a_clear_error(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "blocked"
    path.write_bytes(data)
    try:
        read_blocklist(path)
    except ConfigError as error:
        assert all("\n" not in line for line in error.lines)


def test_lists_are_merged_once_each():
    a, b, c = (ip_network(f"10.{number}.0.0/16") for number in range(3))
    assert merge([a, b], (), [b, c]) == [a, b, c]
