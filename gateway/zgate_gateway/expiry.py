"""When certificates, authorities and revocation lists run out, as data and as problems.

Somebody has to be told while there is time: ``warn_before`` before the end, but not in the first
three quarters of a lifetime, or what lives for a day would never be in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from zgate_identity.revocation import RevocationList

from zgate_gateway.problems import Problems

_LAST_PART = 4

_CURES = {
    "certificate": "put a new certificate and its key in their places: it is taken without a "
    "restart",
    "ca": "put the new authority's certificate into the CA file, beside the old one",
    "crl": "write a new list: zgatectl pki crl, or your authority's own tool",
}


@dataclass(frozen=True, slots=True)
class Validity:
    """One thing that runs out.

    :ivar kind: ``certificate`` (the gateway's own), ``ca`` or ``crl``.
    :ivar key: ``gateway``, ``ca:SUBJECT``, ``crl``: the label of its metric.
    :ivar begins, ends: aware, UTC.
    """

    kind: str
    key: str
    begins: datetime
    ends: datetime

    def is_near(self, now: datetime, warn_before: timedelta) -> bool:
        """Whether it is time to say so."""
        return self.ends - now <= min(warn_before, (self.ends - self.begins) / _LAST_PART)

    def text(self, now: datetime) -> str:
        """What an operator reads."""
        name = {"certificate": "the gateway's certificate", "crl": "the revocation list"}.get(
            self.kind, f"the authority {self.key.removeprefix('ca:')}"
        )
        left = self.ends - now
        verb = "expired" if left < timedelta(0) else "expires"
        return f"{name} {verb} at {self.ends:%F %T} UTC; {_CURES[self.kind]}"


def validities(
    own: x509.Certificate,
    authorities: Iterable[x509.Certificate],
    crls: Iterable[RevocationList],
) -> list[Validity]:
    """All that is in use. Of several lists the one that ends first speaks for all."""
    found = [Validity("certificate", "gateway", *_dates(own))]
    found += [
        Validity("ca", f"ca:{one.subject.rfc4514_string()}", *_dates(one)) for one in authorities
    ]
    lists = sorted(crls, key=lambda one: one.next_update)
    found += [Validity("crl", "crl", one.this_update, one.next_update) for one in lists[:1]]
    return found


def _dates(certificate: x509.Certificate) -> tuple[datetime, datetime]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def tell(
    problems: Problems, found: Sequence[Validity], now: datetime, warn_before: timedelta
) -> None:
    """Begin and end ``certificate_expires``, ``certificate_expired`` and so on."""
    for kind in _CURES:
        ours = [one for one in found if one.kind == kind]
        over = [one for one in ours if one.ends <= now]
        # One authority that has ended stops nobody while another one is valid.
        is_over = bool(over) and (kind != "ca" or len(over) == len(ours))
        near = [one for one in ours if one.is_near(now, warn_before)]
        text = "; ".join(one.text(now) for one in near) or None
        problems.set(f"{kind}_expired", text if is_over else None, is_blocking=True)
        problems.set(f"{kind}_expires", None if is_over else text)
