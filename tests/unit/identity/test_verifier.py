"""Every way in which a client's certificate is refused, and the ones in which it is not."""

import time
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.verifier import ClientVerifier

DAY = timedelta(days=1)


def refusal(verifier: ClientVerifier, now: Any, leaf: bytes | None, *others: bytes) -> Any:
    with pytest.raises(CertificateRefused) as caught:
        verifier.verify(leaf, others, now)
    return caught.value


@pytest.fixture(scope="module")
def verifier(ca: Any) -> ClientVerifier:
    return ClientVerifier([ca.certificate])


def test_identity_of_an_accepted_client(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.leaf(ca, ["Zoë at ward 3"], ["staff", "admins", "staff"])
    identity = verifier.verify(leaf.public_bytes(Encoding.DER), [], forge.now)
    assert identity.name == "Zoë at ward 3"
    assert identity.groups == ("staff", "admins")
    assert identity.serial == leaf.serial_number
    assert identity.not_after == leaf.not_valid_after_utc
    assert identity.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()


def test_a_chain_through_an_intermediate_expires_with_its_first_certificate(forge: Any) -> None:
    root = forge.authority("Root")
    soon = forge.now + timedelta(hours=1)
    middle = forge.authority("Middle", issuer=root, not_after=soon)
    verifier = ClientVerifier([root.certificate])
    identity = verifier.verify(forge.client(middle), [root.der, middle.der], forge.now)
    assert identity.not_after == soon


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_clients_are_accepted(forge: Any, ca: Any, verifier: ClientVerifier, bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)
    assert verifier.verify(forge.client(ca, key=key), [], forge.now).name == "alice"


def test_client_and_server_usage_together_is_a_client(
    forge: Any, ca: Any, verifier: ClientVerifier
) -> None:
    leaf = forge.client(ca, usages=[forge.server_auth, forge.client_auth])
    assert verifier.verify(leaf, [], forge.now).name == "alice"


def test_an_authority_without_key_usage_is_accepted(forge: Any) -> None:
    plain = forge.authority("openssl req -x509", key_usage=False)
    verifier = ClientVerifier([plain.certificate], [forge.crl(plain)])
    assert verifier.verify(forge.client(plain), [], forge.now).name == "alice"


@pytest.mark.parametrize("nothing", [None, b""])
def test_refused_no_certificate(forge: Any, verifier: ClientVerifier, nothing: Any) -> None:
    assert refusal(verifier, forge.now, nothing).reason is RefusalReason.NO_CERTIFICATE


def test_refused_self_signed(forge: Any, verifier: ClientVerifier) -> None:
    key = forge.key()
    own = forge.authority("alice", key=key)
    leaf = forge.client(own, key=key)
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.SELF_SIGNED


def test_refused_wrong_ca(forge: Any, verifier: ClientVerifier) -> None:
    other = forge.authority("Other CA")
    assert refusal(verifier, forge.now, forge.client(other)).reason is RefusalReason.UNKNOWN_ISSUER


def test_refused_wrong_ca_that_is_sent_along(forge: Any, verifier: ClientVerifier) -> None:
    other = forge.authority("Other CA")
    caught = refusal(verifier, forge.now, forge.client(other), other.der)
    assert caught.reason is RefusalReason.SELF_SIGNED
    assert "Other CA" in caught.text


def test_refused_ca_of_the_same_name_with_another_key(forge: Any, verifier: ClientVerifier) -> None:
    impostor = forge.authority("Test CA")
    for others in ((), (impostor.der,)):
        caught = refusal(verifier, forge.now, forge.client(impostor), *others)
        assert caught.reason is RefusalReason.BAD_SIGNATURE


def test_refused_expired(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca, not_before=forge.now - 2 * DAY, not_after=forge.now - DAY)
    caught = refusal(verifier, forge.now, leaf)
    assert caught.reason is RefusalReason.EXPIRED
    assert "2026-02-28" in caught.text


def test_expiry_is_to_the_second(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca)
    assert verifier.verify(leaf, [], forge.now + DAY)
    late = forge.now + DAY + timedelta(seconds=1)
    assert refusal(verifier, late, leaf).reason is RefusalReason.EXPIRED


def test_refused_not_yet_valid(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca, not_before=forge.now + timedelta(minutes=1))
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.NOT_YET_VALID


def test_refused_server_auth_only(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca, usages=[forge.server_auth])
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.WRONG_USAGE


def test_refused_without_extended_key_usage(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    assert (
        refusal(verifier, forge.now, forge.client(ca, usages=None)).reason
        is RefusalReason.WRONG_USAGE
    )


def test_refused_any_extended_key_usage(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca, usages=[x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.WRONG_USAGE


def test_refused_key_usage_without_signature(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    leaf = forge.client(ca, digital_signature=False)
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.WRONG_USAGE


def test_refused_revoked(forge: Any, ca: Any) -> None:
    leaf = forge.leaf(ca)
    verifier = ClientVerifier([ca.certificate], [forge.crl(ca, [leaf.serial_number])])
    caught = refusal(verifier, forge.now, leaf.public_bytes(Encoding.DER))
    assert caught.reason is RefusalReason.REVOKED
    assert f"{leaf.serial_number:040x}" in caught.text
    assert verifier.verify(forge.client(ca), [], forge.now).name == "alice"


def test_refused_under_a_revoked_intermediate(forge: Any) -> None:
    root = forge.authority("Root")
    middle = forge.authority("Middle", issuer=root)
    crls = [forge.crl(root, [middle.certificate.serial_number]), forge.crl(middle)]
    # Trusting the intermediate itself must not hide that its own issuer took it back.
    verifier = ClientVerifier([root.certificate, middle.certificate], crls)
    leaf = forge.client(middle)
    assert refusal(verifier, forge.now, leaf, middle.der).reason is RefusalReason.REVOKED
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.UNKNOWN_ISSUER


def test_refused_under_an_intermediate_without_a_list(forge: Any, ca: Any) -> None:
    middle = forge.authority("Middle", issuer=ca)
    verifier = ClientVerifier([ca.certificate], [forge.crl(ca)])
    caught = refusal(verifier, forge.now, forge.client(middle), middle.der)
    assert caught.reason is RefusalReason.REVOCATION_UNKNOWN


def test_no_authority_left_is_refused_at_loading(forge: Any, ca: Any) -> None:
    with pytest.raises(ValueError, match="every authority is revoked"):
        ClientVerifier([ca.certificate], [forge.crl(ca, [ca.certificate.serial_number])])


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: rsa.generate_private_key(65537, 1024),
        lambda: ec.generate_private_key(ec.SECP224R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["rsa-1024", "p-224", "secp256k1", "ed25519"],
)
def test_refused_key_too_weak(forge: Any, ca: Any, verifier: ClientVerifier, make_key: Any) -> None:
    leaf = forge.client(ca, key=make_key())
    assert refusal(verifier, forge.now, leaf).reason is RefusalReason.WEAK_KEY


@pytest.mark.parametrize(
    "names",
    [
        [],
        [""],
        ["alice\n"],
        ["alice\x00.admin"],
        ["al\x1b[2Jice"],
        ["alice\u202egnp"],
        ["alice\u200b"],
        ["x" * 65],
        ["alice", "admin"],
        ["alice", "alice"],
        [" alice"],
        ["alice "],
        ["e\u0301va"],
    ],
    ids=[
        "missing",
        "empty",
        "newline",
        "nul",
        "escape",
        "right-to-left",
        "zero-width",
        "too-long",
        "two",
        "twice",
        "blank-before",
        "blank-after",
        "not-nfc",
    ],
)
def test_refused_common_name(
    forge: Any, ca: Any, verifier: ClientVerifier, names: list[str]
) -> None:
    caught = refusal(verifier, forge.now, forge.client(ca, names))
    assert caught.reason is RefusalReason.BAD_NAME
    assert str(caught).isprintable()


@pytest.mark.parametrize("group", ["", "staff\n", "x" * 65])
def test_refused_group(forge: Any, ca: Any, verifier: ClientVerifier, group: str) -> None:
    caught = refusal(verifier, forge.now, forge.client(ca, groups=["staff", group]))
    assert caught.reason is RefusalReason.BAD_GROUP


def test_refused_intermediate_that_is_no_ca(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    alice = forge.authority("alice", issuer=ca, is_ca=False)
    caught = refusal(verifier, forge.now, forge.client(alice, ["bob"]), alice.der)
    assert caught.reason is RefusalReason.ISSUER_NOT_CA


def test_refused_intermediate_whose_key_may_not_sign_certificates(
    forge: Any, ca: Any, verifier: ClientVerifier
) -> None:
    signer = forge.authority("Signs lists only", issuer=ca, cert_sign=False)
    caught = refusal(verifier, forge.now, forge.client(signer), signer.der)
    assert caught.reason is RefusalReason.ISSUER_NOT_CA


def test_refused_expired_intermediate(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    middle = forge.authority("Middle", issuer=ca, not_after=forge.now - DAY)
    caught = refusal(verifier, forge.now, forge.client(middle), middle.der)
    assert caught.reason is RefusalReason.ISSUER_NOT_CURRENT


def test_refused_expired_root(forge: Any) -> None:
    old = forge.authority(not_after=forge.now - DAY)
    caught = refusal(ClientVerifier([old.certificate]), forge.now, forge.client(old))
    assert caught.reason is RefusalReason.ISSUER_NOT_CURRENT


def test_refused_chain_too_long(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    chain = [ca]
    for level in range(3):
        chain.append(forge.authority(f"Level {level}", issuer=chain[-1]))
    sent = [each.der for each in chain[1:]]
    assert verifier.verify(forge.client(chain[2]), sent, forge.now)
    caught = refusal(verifier, forge.now, forge.client(chain[3]), *sent)
    assert caught.reason is RefusalReason.CHAIN_TOO_LONG


def test_refused_beyond_path_length(forge: Any) -> None:
    root = forge.authority(path_length=0)
    middle = forge.authority("Middle", issuer=root)
    verifier = ClientVerifier([root.certificate])
    caught = refusal(verifier, forge.now, forge.client(middle), middle.der)
    assert caught.reason is RefusalReason.CHAIN_TOO_LONG


def test_refused_too_many_certificates_sent(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    caught = refusal(verifier, forge.now, forge.client(ca), *[ca.der] * 7)
    assert caught.reason is RefusalReason.CHAIN_TOO_LONG


def test_refused_unknown_critical_extension(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.9.9"), b"\x05\x00")
    caught = refusal(verifier, forge.now, forge.client(ca, extra=[unknown]))
    assert caught.reason is RefusalReason.CHAIN_INVALID


def test_refused_authority_as_client(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    caught = refusal(verifier, forge.now, ca.der)
    assert caught.reason is RefusalReason.WRONG_USAGE


def test_refused_crl_stale(forge: Any, ca: Any) -> None:
    verifier = ClientVerifier([ca.certificate], [forge.crl(ca)])
    leaf = forge.client(ca, not_after=forge.now + 9 * DAY)
    caught = refusal(verifier, forge.now + 2 * DAY, leaf)
    assert caught.reason is RefusalReason.CRL_STALE
    assert "zgatectl pki crl" in caught.text


def test_refused_crl_from_the_future(forge: Any, ca: Any) -> None:
    crl = forge.crl(ca, last_update=forge.now + timedelta(minutes=6))
    verifier = ClientVerifier([ca.certificate], [crl])
    caught = refusal(verifier, forge.now, forge.client(ca))
    assert caught.reason is RefusalReason.CRL_NOT_YET_VALID


def test_refused_without_a_list_of_its_issuer(forge: Any, ca: Any) -> None:
    second = forge.authority("Second CA")
    verifier = ClientVerifier([ca.certificate, second.certificate], [forge.crl(ca)])
    caught = refusal(verifier, forge.now, forge.client(second))
    assert caught.reason is RefusalReason.REVOCATION_UNKNOWN


def test_revocation_goes_by_issuer_not_by_serial_alone(forge: Any, ca: Any) -> None:
    leaf = forge.leaf(ca)
    second = forge.authority("Second CA")
    crls = [forge.crl(ca), forge.crl(second, [leaf.serial_number])]
    verifier = ClientVerifier([ca.certificate, second.certificate], crls)
    assert verifier.verify(leaf.public_bytes(Encoding.DER), [], forge.now)


def test_authorities_that_cannot_vouch_are_refused_at_loading(forge: Any, ca: Any) -> None:
    weak = forge.authority("Weak", key=rsa.generate_private_key(65537, 1024))
    for bad, text in (
        ([], "no certificate"),
        ([ca.certificate, forge.leaf(ca)], "not that of a certificate authority"),
        ([weak.certificate], "1024 bits"),
    ):
        with pytest.raises(ValueError, match=text):
            ClientVerifier(bad)


def test_weak_intermediate_is_refused(forge: Any, ca: Any, verifier: ClientVerifier) -> None:
    weak = forge.authority("Weak", key=rsa.generate_private_key(65537, 1024), issuer=ca)
    caught = refusal(verifier, forge.now, forge.client(weak), weak.der)
    assert caught.reason is RefusalReason.WEAK_KEY


class TestRecheck:
    """What happens to a session that is open when the world changes."""

    def test_holds(self, forge: Any, ca: Any, verifier: ClientVerifier) -> None:
        verifier.recheck(verifier.verify(forge.client(ca), [], forge.now), forge.now)

    def test_expires(self, forge: Any, ca: Any, verifier: ClientVerifier) -> None:
        identity = verifier.verify(forge.client(ca), [], forge.now)
        with pytest.raises(CertificateRefused) as caught:
            verifier.recheck(identity, forge.now + 2 * DAY)
        assert caught.value.reason is RefusalReason.EXPIRED

    def test_revoked(self, forge: Any, ca: Any, verifier: ClientVerifier) -> None:
        identity = verifier.verify(forge.client(ca), [], forge.now)
        later = ClientVerifier([ca.certificate], [forge.crl(ca, [identity.serial])])
        with pytest.raises(CertificateRefused) as caught:
            later.recheck(identity, forge.now)
        assert caught.value.reason is RefusalReason.REVOKED

    def test_authority_no_longer_trusted(
        self, forge: Any, ca: Any, verifier: ClientVerifier
    ) -> None:
        identity = verifier.verify(forge.client(ca), [], forge.now)
        later = ClientVerifier([forge.authority("Test CA").certificate])
        with pytest.raises(CertificateRefused) as caught:
            later.recheck(identity, forge.now)
        assert caught.value.reason is RefusalReason.UNKNOWN_ISSUER

    def test_renewed_authority_certificate_keeps_sessions(
        self, forge: Any, ca: Any, verifier: ClientVerifier
    ) -> None:
        identity = verifier.verify(forge.client(ca), [], forge.now)
        renewed = forge.authority("Test CA", key=ca.key)
        ClientVerifier([renewed.certificate], [forge.crl(renewed)]).recheck(identity, forge.now)


def test_it_takes_less_than_a_millisecond(forge: Any, ca: Any) -> None:
    verifier = ClientVerifier([ca.certificate], [forge.crl(ca, range(1, 5000))])
    leaf = forge.client(ca)

    def once() -> float:
        start = time.perf_counter()
        verifier.verify(leaf, [], forge.now)
        return time.perf_counter() - start

    assert min(once() for _ in range(50)) < 0.001
