from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.server_verifier import ServerVerifier

DAY = timedelta(days=1)
HOSTS = (
    x509.DNSName("gw.example"),
    x509.IPAddress(ip_address("192.0.2.1")),
    x509.IPAddress(ip_address("2001:db8::1")),
)


@pytest.fixture
def server(forge: Any, ca: Any) -> bytes:
    return bytes(forge.client(ca, ["gateway"], usages=[forge.server_auth], hosts=HOSTS))


def refusal(ca: Any, now: Any, leaf: bytes | None, name: str = "gw.example") -> RefusalReason:
    with pytest.raises(CertificateRefused) as caught:
        ServerVerifier([ca.certificate], name).verify(leaf, [], now)
    return caught.value.reason


@pytest.mark.parametrize("name", ["gw.example", "GW.Example", "192.0.2.1", "2001:db8:0::1"])
def test_the_host_that_was_dialled(forge: Any, ca: Any, server: bytes, name: str) -> None:
    ServerVerifier([ca.certificate], name).verify(server, [], forge.now)


@pytest.mark.parametrize("name", ["other.example", "sub.gw.example", "192.0.2.2", "gateway"])
def test_another_host(forge: Any, ca: Any, server: bytes, name: str) -> None:
    assert refusal(ca, forge.now, server, name) is RefusalReason.NAME_MISMATCH


def test_a_certificate_without_hosts(forge: Any, ca: Any) -> None:
    leaf = forge.client(ca, ["gw.example"], usages=[forge.server_auth])
    assert refusal(ca, forge.now, leaf) is RefusalReason.NAME_MISMATCH


def test_a_client_of_the_same_ca_with_the_gateways_name(forge: Any, ca: Any) -> None:
    impostor = forge.client(ca, ["gw.example"], hosts=HOSTS)
    assert refusal(ca, forge.now, impostor) is RefusalReason.WRONG_USAGE


def test_no_extended_key_usage(forge: Any, ca: Any) -> None:
    leaf = forge.client(ca, usages=None, hosts=HOSTS)
    assert refusal(ca, forge.now, leaf) is RefusalReason.WRONG_USAGE


def test_key_usage_without_signature(forge: Any, ca: Any) -> None:
    leaf = forge.client(ca, usages=[forge.server_auth], hosts=HOSTS, digital_signature=False)
    assert refusal(ca, forge.now, leaf) is RefusalReason.WRONG_USAGE


def test_wrong_ca(forge: Any, server: bytes) -> None:
    other = forge.authority("Other CA")
    assert refusal(other, forge.now, server) is RefusalReason.UNKNOWN_ISSUER


def test_ca_of_the_same_name_with_another_key(forge: Any, server: bytes) -> None:
    twin = forge.authority("Test CA")
    assert refusal(twin, forge.now, server) is RefusalReason.BAD_SIGNATURE


def test_expired(forge: Any, ca: Any, server: bytes) -> None:
    assert refusal(ca, forge.now + 2 * DAY, server) is RefusalReason.EXPIRED


def test_not_yet_valid(forge: Any, ca: Any, server: bytes) -> None:
    assert refusal(ca, forge.now - 2 * DAY, server) is RefusalReason.NOT_YET_VALID


def test_weak_key(forge: Any, ca: Any) -> None:
    key = rsa.generate_private_key(65537, 1024)
    leaf = forge.client(ca, usages=[forge.server_auth], hosts=HOSTS, key=key)
    assert refusal(ca, forge.now, leaf) is RefusalReason.WEAK_KEY


def test_no_certificate(forge: Any, ca: Any) -> None:
    assert refusal(ca, forge.now, None) is RefusalReason.NO_CERTIFICATE


def test_truncated_at_every_byte(forge: Any, ca: Any, server: bytes) -> None:
    verifier = ServerVerifier([ca.certificate], "gw.example")
    for length in range(1, len(server)):
        with pytest.raises(CertificateRefused) as caught:
            verifier.verify(server[:length], [], forge.now)
        assert caught.value.reason is RefusalReason.MALFORMED


def test_a_file_without_an_authority_verifies_nobody(forge: Any, ca: Any) -> None:
    for bad in ([], [forge.leaf(ca)]):
        with pytest.raises(ValueError, match="authority"):
            ServerVerifier(bad, "gw.example")


def test_what_is_no_host_cannot_be_dialled(ca: Any) -> None:
    with pytest.raises(ValueError, match="no host name"):
        ServerVerifier([ca.certificate], "not a host")
