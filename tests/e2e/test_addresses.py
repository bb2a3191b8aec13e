"""Virtual IPs: each client keeps its own, and when there is none left, that is said."""

from __future__ import annotations

from zgate_lab.deployment import Deployment

# Four addresses: network, gateway, one client, broadcast.
SMALL_POOL = {"ipv4": "10.100.0.0/30", "ipv6": "fd7a:7a67:6174:65::/64"}


def test_an_exhausted_pool_is_told_to_the_agent(deployment: Deployment) -> None:
    deployment.start_gateway(pool=SMALL_POOL)
    internet = deployment.internet
    alice = deployment.start_agent("alice", internet.device1)
    assert alice["addresses"][0] == "10.100.0.2/32"
    deployment.spawn_agent("bob", internet.device2)
    told = deployment.wait_agent("bob", "backoff")["reason"]
    assert "status 503" in told
    assert "address pool" in told
    assert deployment.gateway_status()["sessions"] == 1
    assert deployment.wait_audit("session_refused", client="bob")
    # Nor is alice's address given away while she is gone: it is hers.
    deployment.agents["alice"].stop()
    deployment.agents["bob"].stop()
    deployment.spawn_agent("bob", internet.device2)
    assert "status 503" in deployment.wait_agent("bob", "backoff")["reason"]
    again = deployment.start_agent("alice", internet.device1)
    assert again["addresses"] == alice["addresses"]
