"""Half a minute of what `make soak` does for five."""

from __future__ import annotations

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet

from .soak import POLICY, soak

SECONDS = 30.0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_half_a_minute_of_hard_use() -> None:
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({"alice": []})
        try:
            result = soak(zgate, SECONDS)
        finally:
            zgate.stop()
    print(result.table())
    assert result.failures() == []
    assert result.up.streams and result.down.streams
