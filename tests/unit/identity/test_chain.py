"""Whatever bytes a peer sends as certificates: a refusal, and nothing else."""

import warnings
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_identity.chain import MAX_CERTIFICATE_BYTES, only_refusals
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.verifier import ClientVerifier

relaxed = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)


@pytest.fixture(scope="module")
def verifier(ca: Any) -> ClientVerifier:
    return ClientVerifier([ca.certificate])


@pytest.fixture(scope="module")
def leaf(forge: Any, ca: Any) -> bytes:
    return bytes(forge.client(ca, groups=["staff"]))


@pytest.fixture(scope="module")
def below_middle(forge: Any, ca: Any) -> tuple[bytes, bytes]:
    """An intermediate authority, and a client of it."""
    middle = forge.authority("Middle", issuer=ca)
    return middle.der, forge.client(middle)


def refuse(verifier: ClientVerifier, now: Any, der: bytes, *others: bytes) -> RefusalReason:
    with pytest.raises(CertificateRefused) as caught:
        verifier.verify(der, others, now)
    assert str(caught.value).isprintable()
    return caught.value.reason


def test_truncated_at_every_byte(forge: Any, verifier: ClientVerifier, leaf: bytes) -> None:
    assert verifier.verify(leaf, [], forge.now)
    for length in range(1, len(leaf)):
        assert refuse(verifier, forge.now, leaf[:length]) is RefusalReason.MALFORMED


def test_trailing_bytes(forge: Any, verifier: ClientVerifier, leaf: bytes) -> None:
    assert refuse(verifier, forge.now, leaf + b"\0") is RefusalReason.MALFORMED


def test_an_intermediate_truncated_at_every_byte(
    forge: Any, ca: Any, verifier: ClientVerifier, leaf: bytes
) -> None:
    for length in range(len(ca.der)):
        assert refuse(verifier, forge.now, leaf, ca.der[:length]) is RefusalReason.MALFORMED


@relaxed
@given(garbage=st.binary(min_size=1, max_size=600))
def test_garbage(forge: Any, verifier: ClientVerifier, garbage: bytes) -> None:
    assert refuse(verifier, forge.now, garbage) is RefusalReason.MALFORMED


def signed_part(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


@relaxed
@given(data=st.data())
def test_a_changed_certificate_is_accepted_only_if_what_was_signed_is_unchanged(
    forge: Any, verifier: ClientVerifier, leaf: bytes, data: st.DataObject
) -> None:
    """The signature itself has more than one encoding (its unused bits, say); nothing else has."""
    places = st.integers(0, len(leaf) - 1)
    changed = bytearray(leaf)
    for place, difference in data.draw(st.lists(st.tuples(places, st.integers(1, 255)))):
        changed[place] ^= difference
    try:
        verifier.verify(bytes(changed), [], forge.now)
    except CertificateRefused as refused:
        assert str(refused).isprintable()
    else:
        assert signed_part(bytes(changed)) == signed_part(leaf)


@relaxed
@given(place=st.floats(0, 1, exclude_max=True), difference=st.integers(1, 255))
def test_a_changed_issuer_vouches_only_if_what_was_signed_is_unchanged(
    forge: Any,
    verifier: ClientVerifier,
    below_middle: tuple[bytes, bytes],
    place: float,
    difference: int,
) -> None:
    issuer, client = below_middle
    changed = bytearray(issuer)
    changed[int(place * len(issuer))] ^= difference
    try:
        verifier.verify(client, [bytes(changed)], forge.now)
    except CertificateRefused as refused:
        assert str(refused).isprintable()
    else:
        assert signed_part(bytes(changed)) == signed_part(issuer)


def test_too_large(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    groups = [f"group {number:050}" for number in range(400)]
    large = forge.client(ca, groups=groups)
    assert len(large) > MAX_CERTIFICATE_BYTES
    assert refuse(verifier, forge.now, large) is RefusalReason.MALFORMED


def test_a_version_1_certificate(forge: Any, verifier: ClientVerifier, leaf: bytes) -> None:
    version_3 = bytes.fromhex("a003020102")
    assert leaf.count(version_3) == 1
    version_1 = leaf.replace(version_3, bytes.fromhex("a003020100"))
    assert refuse(verifier, forge.now, version_1) is RefusalReason.MALFORMED


def test_two_issuers_that_sign_each_other_end(forge: Any, verifier: ClientVerifier) -> None:
    one_key, two_key = forge.key(), forge.key()
    one, two = forge.authority("One", key=one_key), forge.authority("Two", key=two_key)
    one_by_two = forge.authority("One", key=one_key, issuer=two)
    two_by_one = forge.authority("Two", key=two_key, issuer=one)
    reason = refuse(verifier, forge.now, forge.client(one), one_by_two.der, two_by_one.der)
    assert reason in {RefusalReason.UNKNOWN_ISSUER, RefusalReason.BAD_SIGNATURE}


def test_unexpected_errors_become_refusals_and_warnings_stay_silent() -> None:
    with warnings.catch_warnings(record=True) as heard, pytest.raises(CertificateRefused) as caught:
        warnings.simplefilter("always")
        with only_refusals():
            warnings.warn("from a hostile certificate", UserWarning, stacklevel=1)
            raise ZeroDivisionError("deep inside\n")
    assert caught.value.reason is RefusalReason.MALFORMED
    assert str(caught.value).isprintable()
    assert heard == []


def test_a_refusal_passes_through_unchanged() -> None:
    refusal = CertificateRefused(RefusalReason.REVOKED, "gone")
    with pytest.raises(CertificateRefused) as caught, only_refusals():
        raise refusal
    assert caught.value is refusal


def test_the_leaf_may_be_followed_by_itself(
    forge: Any, ca: Any, verifier: ClientVerifier, leaf: bytes
) -> None:
    again = ca.certificate.public_bytes(Encoding.DER)
    assert verifier.verify(leaf, [leaf, again], forge.now).name == "alice"
