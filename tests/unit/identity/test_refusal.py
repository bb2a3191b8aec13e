import pytest
from zgate_identity.refusal import CertificateRefused, RefusalReason


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_reason_has_an_alert_about_certificates(reason: RefusalReason) -> None:
    assert reason.tls_alert in {42, 43, 44, 45, 46, 48, 116}


def test_alerts_that_peers_act_on() -> None:
    assert RefusalReason.NO_CERTIFICATE.tls_alert == 116
    assert RefusalReason.REVOKED.tls_alert == 44
    assert RefusalReason.EXPIRED.tls_alert == 45
    assert RefusalReason.UNKNOWN_ISSUER.tls_alert == 48


def test_the_text_is_one_printable_line() -> None:
    refused = CertificateRefused(RefusalReason.BAD_NAME, "evil\n\x1b[2J\u202e")
    assert str(refused).startswith("bad_name: evil")
    assert str(refused).isprintable()
