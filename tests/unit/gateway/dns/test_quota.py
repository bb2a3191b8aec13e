"""How often is too often."""

from zgate_gateway.dns import quota
from zgate_gateway.dns.quota import Bucket, ClientQuotas


def test_a_burst_then_as_many_as_time_gives():
    bucket = Bucket(per_s=8, burst=3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.0625)
    assert bucket.take(100.125) and not bucket.take(100.125)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(5.0)  # a clock that went back gives nothing


def test_each_client_has_its_own():
    quotas = ClientQuotas(per_s=1, burst=2)
    assert [quotas.take("a", 5.0) for _ in range(3)] == [True, True, False]
    assert quotas.take("b", 5.0)
    assert quotas.take("a", 6.0)


def test_there_is_an_end_to_what_is_remembered(monkeypatch):
    monkeypatch.setattr(quota, "_MAX_CLIENTS", 3)
    quotas = ClientQuotas(per_s=1, burst=1)
    for client in "abc":
        assert quotas.take(client, 0.0)
    assert not quotas.take("a", 0.0)  # now "b" is the one of longest ago
    assert quotas.take("d", 0.0) and len(quotas._buckets) == 3
    assert not quotas.take("a", 0.0)
    assert "b" not in quotas._buckets
