"""As many services as one connector can offer."""

from __future__ import annotations

from e2e_support.service_world import ServiceWorld, connect
from zgate_lab.backend_server import NAME_PORT

SERVICES = 250


def test_every_one_of_many_services_is_accepted_and_reached(service_world: ServiceWorld) -> None:
    world, site = service_world, service_world.sites[0]
    world.stop_all()
    backend = f"{site.backend.ipv4}:{NAME_PORT}"
    services = [
        {
            "id": f"extra-{number}",
            "ports": [1000 + number],
            "backend": backend,
            "health": {"kind": "none"},
        }
        for number in range(SERVICES)
    ]
    world.connectors.start("east", site.connector, services=services)
    try:
        (gateway,) = world.connectors.status("east")["gateways"]
        assert [one["code"] for one in gateway["answers"]] == ["accepted"] * SERVICES
        assert len(gateway["addresses"]) == 2 + 2 * SERVICES
        for number in (0, 1, SERVICES // 2, SERVICES - 1):
            for version in (4, 6):
                with connect(
                    world.alice, world.vip(f"extra-{number}", version), 1000 + number
                ) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert client.recv(4096).startswith(b"HTTP/1.")
    finally:
        world.stop_all()
