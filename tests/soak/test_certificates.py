"""Twelve of the 1440 minutes of `make soak-certificates`."""

from __future__ import annotations

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet

from .certificates import POLICY, live

RENEWALS = 12


@pytest.mark.timeout(240)
def test_certificates_are_renewed_every_minute_and_no_session_is_dropped() -> None:
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({"alice": []})
        try:
            result = live(zgate, RENEWALS)
        finally:
            zgate.stop()
    print(result.table())
    assert result.failures() == []
    assert (result.renewals, result.own_renewals) == (RENEWALS, 1)
    assert result.carried_bytes > 0
