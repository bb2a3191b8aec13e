"""The topology of the demo: who reaches whom, and what can be done to the paths."""

import socket

import pytest
from zgate_lab.internet import Host, Internet
from zgate_lab.traffic import answers, https_get, ping
from zgate_lab.waiting import wait_until
from zgate_lab.wan import WanSettings


def reaches(source: Host, destination: Host) -> bool:
    """Whether all pings are answered, in both families; AssertionError when only one is."""
    answered = {
        answers(source.namespace.name, address) for address in (destination.ipv4, destination.ipv6)
    }
    (both,) = answered
    return both


def test_who_reaches_whom(internet: Internet) -> None:
    for device in (internet.device1, internet.device2):
        assert reaches(device, internet.gateway)
        assert reaches(internet.gateway, device)
        assert not reaches(device, internet.gateway_inside)
        assert not reaches(device, internet.office)
        assert not reaches(device, internet.forbidden)
    for host in (internet.office, internet.forbidden):
        assert reaches(internet.gateway, host)
        assert reaches(host, internet.gateway_inside)
        assert not reaches(host, internet.gateway)


def test_the_office_says_and_writes_down_who_asked(internet: Internet) -> None:
    web = internet.start_web_server(internet.office)
    gateway = internet.gateway.namespace.name
    for url, inside in (
        (web.url_ipv4, internet.gateway_inside.ipv4),
        (web.url_ipv6, internet.gateway_inside.ipv6),
    ):
        answer = https_get(gateway, url, web.certificate_file)
        assert (answer.status, answer.error) == (200, "")
        assert f'"client": "{inside}"' in answer.body
        assert web.requests()[-1].client == str(inside)
    assert https_get(gateway, web.url_ipv4 + "bytes/500000", web.certificate_file).body_bytes == (
        500_000
    )


def test_a_server_that_is_not_there_is_an_answer_without_status(internet: Internet) -> None:
    web = internet.start_web_server(internet.office)
    url = f"https://{internet.forbidden.ipv4}/"
    answer = https_get(internet.gateway.namespace.name, url, web.certificate_file)
    assert answer.status == 0
    assert "Connection refused" in answer.error or "connect" in answer.error.lower()


def test_the_middle_of_the_path_shrinks_and_only_icmp_tells(internet: Internet) -> None:
    device, gateway = internet.device1.namespace.name, internet.gateway
    payload_bytes = 1400  # packets of 1428 and 1448 bytes
    internet.set_path_mtu(1400)
    for address in (gateway.ipv4, gateway.ipv6):
        result = ping(
            device, address, payload_bytes=payload_bytes, dont_fragment=True, timeout_s=0.3
        )
        assert result.received == 0
    route = internet.device1.namespace.run("ip", "route", "get", str(gateway.ipv4)).stdout
    assert "mtu 1400" in route
    assert "mtu 1500" in internet.device1.namespace.run("ip", "link", "show", "eth0").stdout


def test_the_path_is_shaped_and_unshaped(internet: Internet) -> None:
    device, gateway = internet.device1, internet.gateway
    wan = internet.shape_path(WanSettings(delay_ms=15))
    for address in (gateway.ipv4, gateway.ipv6):
        result = ping(device.namespace.name, address)
        assert result.lost == 0
        assert result.rtt_min_ms is not None and result.rtt_min_ms >= 30
    internet.shape_path(WanSettings(loss=1.0))
    assert not wan.is_running()
    assert not reaches(device, gateway)
    internet.unshape_path()
    assert reaches(device, gateway)


def test_duplicates_and_loss_are_real(internet: Internet) -> None:
    internet.shape_path(WanSettings(loss=0.2, duplicate=0.2, seed=5))
    result = ping(
        internet.device1.namespace.name, internet.gateway.ipv4, count=100, interval_s=0.005
    )
    assert 10 < result.lost < 60  # 36 % of the pings lose one of their two packets
    assert result.duplicates > 5


def test_the_path_is_cut_and_mended(internet: Internet) -> None:
    internet.set_path_up(False)
    assert not reaches(internet.device2, internet.gateway)
    internet.set_path_up(True)
    assert reaches(internet.device2, internet.gateway)


@pytest.mark.parametrize("abruptly", [False, True])
def test_a_device_moves_to_other_addresses(internet: Internet, abruptly: bool) -> None:
    old = internet.device1
    moved = internet.move_device(old, 7, abruptly=abruptly)
    assert moved is internet.device1
    assert str(moved.ipv4) == "198.18.1.7"
    assert reaches(moved, internet.gateway)
    assert reaches(internet.gateway, moved)
    assert not reaches(internet.gateway, old)
    with old.namespace.entered():
        probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with probe:
        probe.connect((str(internet.gateway.ipv6), 9))
        wait_until(lambda: probe.getsockname()[0] == str(moved.ipv6), 1.0, "the new source")
