from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from zgate_identity.refusal import CertificateRefused, RefusalReason
from zgate_identity.revocation import CrlError, PathStep, Revocation, authority_key

DAY = timedelta(days=1)


def test_a_forged_list_is_not_loaded(forge: Any, ca: Any) -> None:
    forged = forge.crl(ca, signer=forge.key())
    with pytest.raises(CrlError, match="signature"):
        Revocation.load([forged], [ca.certificate])


def test_a_list_of_an_unknown_authority_is_not_loaded(forge: Any, ca: Any) -> None:
    other = forge.authority("Other CA")
    with pytest.raises(CrlError, match="Other CA"):
        Revocation.load([forge.crl(other)], [ca.certificate])


def test_an_authority_that_may_not_sign_lists_cannot(forge: Any) -> None:
    mute = forge.authority("Mute", crl_sign=False)
    with pytest.raises(CrlError, match="signature"):
        Revocation.load([forge.crl(mute)], [mute.certificate])


def test_a_list_signed_with_a_weak_hash_is_not_loaded(forge: Any, ca: Any) -> None:
    weak = forge.crl(ca, hash_algorithm=hashes.SHA224())
    with pytest.raises(CrlError, match="SHA-256"):
        Revocation.load([weak], [ca.certificate])


def test_a_list_without_an_end_is_not_loaded(forge: Any, ca: Any) -> None:
    class Endless:
        """The library cannot build such a list, though it reads one."""

        next_update_utc = None

        def __getattr__(self, name: str) -> Any:
            return getattr(forge_made, name)

    forge_made = forge.crl(ca)
    with pytest.raises(CrlError, match="no nextUpdate"):
        Revocation.load([Endless()], [ca.certificate])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "kind",
    [
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(None, None, True, False, None, False, False),
    ],
    ids=["delta", "partial"],
)
def test_incomplete_lists_are_not_loaded(forge: Any, ca: Any, kind: x509.ExtensionType) -> None:
    with pytest.raises(CrlError, match="critical extension"):
        Revocation.load([forge.crl(ca, extra=[kind])], [ca.certificate])


def test_the_newer_of_two_lists_counts_whatever_their_order(forge: Any, ca: Any) -> None:
    lists = [forge.crl(ca, number=1), forge.crl(ca, [77], number=2)]
    for order in (lists, lists[::-1]):
        loaded = Revocation.load(order, [ca.certificate])
        assert loaded.lists[authority_key(ca.certificate)].serials == {77}


def test_without_numbers_the_date_decides_which_is_newer(forge: Any, ca: Any) -> None:
    old = forge.crl(ca, number=None, last_update=forge.now - 2 * DAY)
    new = forge.crl(ca, [77], number=None)
    before = Revocation.load([old], [ca.certificate])
    after = Revocation.load([new], [ca.certificate])
    assert before.goes_back_behind(after)
    assert not after.goes_back_behind(before)
    assert not after.goes_back_behind(after)


def test_two_authorities_of_one_name_have_their_own_lists(forge: Any, ca: Any) -> None:
    twin = forge.authority("Test CA")
    crls = [forge.crl(ca, [1]), forge.crl(twin, [2])]
    loaded = Revocation.load(crls, [ca.certificate, twin.certificate])
    assert loaded.lists[authority_key(ca.certificate)].serials == {1}
    assert loaded.lists[authority_key(twin.certificate)].serials == {2}


def test_every_step_of_a_path_is_looked_up(forge: Any, ca: Any) -> None:
    middle = forge.authority("Middle", issuer=ca)
    revoked = middle.certificate.serial_number
    loaded = Revocation.load(
        [forge.crl(ca, [revoked]), forge.crl(middle)], [ca.certificate, middle.certificate]
    )
    path = [
        PathStep(1, authority_key(middle.certificate)),
        PathStep(revoked, authority_key(ca.certificate)),
    ]
    loaded.require_not_revoked(path[:1], forge.now)
    with pytest.raises(CertificateRefused) as caught:
        loaded.require_not_revoked(path, forge.now)
    assert caught.value.reason is RefusalReason.REVOKED


def test_without_any_list_revocation_is_not_checked(forge: Any) -> None:
    Revocation({}).require_not_revoked([PathStep(1, b"anybody")], forge.now)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (-2 * DAY, RefusalReason.CRL_NOT_YET_VALID),
        (-DAY - timedelta(minutes=4), None),
        (DAY, None),
        (DAY + timedelta(seconds=1), RefusalReason.CRL_STALE),
    ],
)
def test_a_list_holds_between_its_dates(
    forge: Any, ca: Any, moment: timedelta, reason: RefusalReason | None
) -> None:
    loaded = Revocation.load([forge.crl(ca)], [ca.certificate])
    if reason is None:
        loaded.require_current(forge.now + moment)
        return
    with pytest.raises(CertificateRefused) as caught:
        loaded.require_current(forge.now + moment)
    assert caught.value.reason is reason
