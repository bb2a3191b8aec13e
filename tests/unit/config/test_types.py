"""Addresses, networks, names and paths as files write them."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from zgate_config import types


def read(kind, value, folder=None):
    return TypeAdapter(kind).validate_python(value, context={"folder": folder})


def refused(kind, value):
    with pytest.raises(ValidationError) as caught:
        read(kind, value)
    (error,) = caught.value.errors()
    return error["msg"]


@given(st.one_of(st.ip_addresses(), st.ip_addresses().map(lambda a: f"{a}/{a.max_prefixlen}")))
def test_an_address_is_a_network_of_one(address):
    network = types.parse_network(str(address))
    assert network.prefixlen == network.max_prefixlen
    assert network == ip_network(str(address))


@given(st.ip_addresses(), st.integers(0, 128))
def test_host_bits_name_the_network_meant(address, bits):
    bits = min(bits, address.max_prefixlen)
    meant = ip_network(f"{address}/{bits}", strict=False)
    if meant.network_address == address:
        assert types.parse_network(f"{address}/{bits}") == meant
    else:
        with pytest.raises(ValueError, match="without host bits") as caught:
            types.parse_network(f"{address}/{bits}")
        assert str(caught.value).endswith(f"(the network is {meant})")


@given(st.text(max_size=30))
def test_any_text_is_a_network_or_refused(text):
    try:
        assert isinstance(types.parse_network(text), IPv4Network | IPv6Network)
    except ValueError as error:
        assert "a CIDR" in str(error)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0/8", "::/0", "2001:db8::/32", "10.1.2.3", "::ffff:1.2.3.4/128"],
)
def test_truncated_networks_are_networks_or_refused(text):
    assert types.parse_network(text)
    for length in range(len(text)):
        test_any_text_is_a_network_or_refused.hypothesis.inner_test(text[:length])


@pytest.mark.parametrize(
    "text", ["10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "fe80::%1/64", "1/8", "/", 5, None]
)
def test_no_other_spelling(text):
    assert refused(types.IpNetwork, text) == "a CIDR such as 10.0.0.0/8 or 2001:db8::/32"


def test_one_family():
    assert read(types.Ipv4Network, "10.0.0.0/8") == IPv4Network("10.0.0.0/8")
    assert refused(types.Ipv4Network, "::/0") == "an IPv4 CIDR such as 10.0.0.0/8"
    assert refused(types.Ipv6Network, "10.0.0.0/8") == "an IPv6 CIDR such as 2001:db8::/32"


@pytest.mark.parametrize("value", ["::1%eth0", "10.0.0", "", 5, None, "10.0.0.1/32"])
def test_no_address(value):
    assert refused(types.IpAddress, value) == "an IP address"


def test_hosts():
    assert read(types.Host, "Gateway.Example.ORG") == "gateway.example.org"
    assert read(types.Host, "2001:DB8::1") == "2001:db8::1"
    for wrong in ("-a.org", "a..b", "*.org", "a b", "", "ü.org", 5, "a" * 64):
        assert refused(types.Host, wrong) == "a host name or an IP address"


@pytest.mark.parametrize("name", ["a" * 16, "a/b", "a b", "", ".", "..", "a:1", "ü", "a%d", "a\0"])
def test_no_interface_name(name):
    assert "interface name" in refused(types.InterfaceName, name)


def test_interface_names():
    for name in ("zgate0", "a" * 15, "eth0.100", "wan-1"):
        assert read(types.InterfaceName, name) == name


@pytest.mark.parametrize("value", [-1, 65536, "80", True, 1.0, None])
def test_no_port(value):
    assert refused(types.Port, value) == "a port (0 to 65535)"


def test_paths(tmp_path):
    assert read(types.LocalPath, "a/b", tmp_path) == tmp_path / "a/b"
    assert read(types.LocalPath, "/a", tmp_path).as_posix() == "/a"
    for wrong in ("", "a\0b", 5, None):
        assert refused(types.LocalPath, wrong) == "a path"


def test_readable_files(tmp_path):
    (tmp_path / "f").write_text("")
    assert read(types.ReadableFile, "f", tmp_path) == tmp_path / "f"
    missing = tmp_path / "none"
    expected = f"a readable file (No such file or directory: {missing})"
    assert refused(types.ReadableFile, str(missing)) == expected
    assert refused(types.ReadableFile, str(tmp_path)).startswith("a readable file (Is a directory")
