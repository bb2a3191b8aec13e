"""The policy, as the kernel keeps it: who may reach what, who is told, and how it changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from e2e_support.world import ECHO_PORT, POLICY, World
from zgate_lab.capture import Capture
from zgate_lab.deployment import ROUTES, CommandFailed, Deployment
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Internet
from zgate_lab.traffic import ping, send_udp
from zgate_lab.unix_http import get_json
from zgate_lab.waiting import wait_until

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
DENY_ALL = 'version: "1.0"\nmetadata: {name: nothing}\ndefault_action: deny\nclients: {}\n'


@pytest.fixture
def restored(world: World) -> Iterator[World]:
    """The world, with its own policy in force again afterwards."""
    yield world
    load(world, POLICY)


def load(world: World, policy: str) -> int:
    """Write the policy file and reload by zgatectl; the revision then."""
    world.zgate.policy_file.write_text(policy)
    return int(world.zgate.ask("policy", "reload")["summary"]["revision"])


def revision(world: World) -> int:
    return int(world.zgate.gateway_status()["policy"]["revision"])


# What the audit log says.


def test_an_explicit_denial_names_its_rule(world: World) -> None:
    office = world.internet.office
    send_udp(world.bob, office.ipv4, 5999, [b"x"], count=1)
    record = world.zgate.wait_audit("flow_denied", client="bob", destination_port=5999)
    assert record["rule"] == "deny-office"
    assert record["reason"] == "POLICY_RULE"
    assert record["revision"] == revision(world)
    assert (record["direction"], record["protocol"]) == ("up", UDP)
    assert record["source"] in {a.split("/")[0] for a in world.zgate.sessions()["bob"]["addresses"]}


def test_a_denial_by_default_names_no_rule(world: World) -> None:
    forbidden = world.internet.forbidden
    with Capture(world.internet.gateway.namespace, "inside") as inside:
        for destination in (forbidden.ipv4, forbidden.ipv6):
            send_udp(world.alice, destination, 5998, [b"x"], count=1)
            record = world.zgate.wait_audit(
                "flow_denied", client="alice", destination=str(destination)
            )
            assert (record["rule"], record["reason"]) == (None, "POLICY_DEFAULT")
            assert record["revision"] == revision(world)
    towards = {str(one.destination) for one in inside.packets}
    assert not towards & {str(forbidden.ipv4), str(forbidden.ipv6)}


def test_an_allowed_flow_is_noted_once(world: World) -> None:
    office = world.internet.office
    with UdpEcho(office, ECHO_PORT), UdpClient(world.alice, office.ipv4, ECHO_PORT) as client:
        for _ in range(5):
            assert client.ask(b"hello") == b"hello"
        port = client.socket.getsockname()[1]
    record = world.zgate.wait_audit("flow_allowed", client="alice", source_port=port)
    assert record["rule"] == "allow-office-udp"
    assert len(world.zgate.audit("flow_allowed", client="alice", source_port=port)) == 1


def test_group_rules_are_for_the_groups_of_the_certificate(world: World) -> None:
    forbidden = world.internet.forbidden
    zgate = world.zgate
    assert ping(world.alice, forbidden.ipv4, count=1, timeout_s=0.3).received == 0
    zgate.agents["bob"].stop()
    try:
        zgate.start_agent("carol", world.internet.device2)
        assert zgate.sessions()["carol"]["groups"] == ["staff"]
        assert ping(world.bob, forbidden.ipv4).lost == 0
        why = zgate.ask("why", "carol", str(forbidden.ipv4), "icmp")
        assert (why["kernel"]["rule_id"], why["kernel"]["action"]) == ("staff-ping", "allow")
        assert why["agree"]
    finally:
        zgate.agents["carol"].stop()
        zgate.start_agent("bob", world.internet.device2)


# Why.

PROTOCOLS = {"tcp": TCP, "udp": UDP, "gre": 47}


def ask_why(world: World, client: str, destination: str, service: str) -> dict[str, Any]:
    """The document of `zgatectl why --json`."""
    name, _, port = service.partition("/")
    icmp = ICMPV6 if ":" in destination else ICMP
    query = {"client": client, "destination": destination, "protocol": PROTOCOLS.get(name, icmp)}
    if port:
        query["port"] = int(port)
    answer = get_json(world.zgate.socket, f"/v1/why?{urlencode(query)}")
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(
    ("client", "destination", "service", "action", "rule"),
    [
        ("alice", "10.20.0.5", "tcp/443", "allow", "allow-office-web"),
        ("alice", "fd00:20::5", "tcp/443", "allow", "allow-office-web"),
        ("alice", "10.20.0.5", "tcp/80", "deny", None),
        ("alice", "10.20.0.200", "tcp/5100", "allow", "allow-office-web"),
        ("alice", "10.20.0.5", "tcp/5101", "deny", None),
        ("alice", "10.20.0.5", "udp/5001", "allow", "allow-office-udp"),
        ("alice", "10.20.0.5", "udp/443", "deny", None),
        ("alice", "10.20.0.5", "icmp", "allow", "allow-office-ping"),
        ("alice", "fd00:20::5", "icmp", "allow", "allow-office-ping"),
        ("alice", "10.20.1.1", "icmp", "deny", None),
        ("alice", "10.66.0.5", "icmp", "deny", None),
        ("bob", "10.20.0.5", "tcp/443", "deny", "deny-office"),
        ("bob", "fd00:20::5", "udp/53", "deny", "deny-office"),
        ("bob", "10.20.0.5", "gre", "deny", "deny-office"),
        ("bob", "192.0.2.1", "tcp/443", "deny", None),
    ],
)
def test_why_says_what_the_kernel_does(
    world: World, client: str, destination: str, service: str, action: str, rule: str | None
) -> None:
    why = ask_why(world, client, destination, service)
    assert why["agree"] is True
    for verdict in (why["compiler"], why["kernel"]):
        assert (verdict["action"], verdict["rule_id"]) == (action, rule)
        assert verdict["revision"] == revision(world)
    assert why["kernel"]["reason"] == (
        "NONE" if action == "allow" else "POLICY_RULE" if rule else "POLICY_DEFAULT"
    )


def test_asking_why_counts_nothing(world: World) -> None:
    before = world.zgate.counters("bob"), world.zgate.counters("alice")
    assert ask_why(world, "bob", "10.20.0.5", "tcp/443")["agree"]
    assert ask_why(world, "alice", "10.20.0.5", "tcp/443")["agree"]
    assert (world.zgate.counters("bob"), world.zgate.counters("alice")) == before


# Changes.


def change_unseen(path: Path, text: str) -> None:
    """Write a file so that nobody who only watches it notices: same file, size and time.

    `text` is filled up with a comment.
    """
    before = path.stat()
    filled = (text + "#").ljust(before.st_size - 1, ".") + "\n" if text != POLICY else text
    assert len(filled) == before.st_size
    with path.open("r+") as file:
        file.write(filled)
        file.flush()
        os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


def reload_by_command(world: World) -> None:
    world.zgate.ask("policy", "reload")


def reload_by_signal(world: World) -> None:
    before = revision(world)
    world.gateway.signal(signal.SIGHUP)
    wait_until(lambda: revision(world) > before, 5.0, "the new revision")


@pytest.mark.parametrize("reload", [reload_by_command, reload_by_signal])
def test_a_reload_holds_for_established_flows_too(restored: World, reload: object) -> None:
    assert callable(reload)
    office, zgate = restored.internet.office, restored.zgate
    with UdpEcho(office, ECHO_PORT), UdpClient(restored.alice, office.ipv4, ECHO_PORT) as client:
        assert client.ask(b"one") == b"one"
        port = client.socket.getsockname()[1]
        change_unseen(zgate.policy_file, DENY_ALL)
        reload(restored)
        client.socket.send(b"two")
        record = zgate.wait_audit("flow_denied", client="alice", source_port=port)
        assert (record["revision"], record["reason"]) == (revision(restored), "POLICY_DEFAULT")
        change_unseen(zgate.policy_file, POLICY)
        reload(restored)
        assert client.ask(b"three") == b"three"


def test_a_reload_of_the_same_policy_is_no_new_revision(world: World) -> None:
    before = revision(world)
    answer = world.zgate.ask("policy", "reload")
    assert (answer["changed"], answer["summary"]["revision"]) == (False, before)


BAD_POLICIES = {
    "destinations: [10.20.0.0/33]": POLICY.replace("10.20.0.0/24", "10.20.0.0/33", 1),
    "typo: deny": POLICY.replace("default_action: deny", "default_action: deny\ntypo: deny"),
    "not YAML": POLICY + "\n  : [",
}


@pytest.mark.parametrize("name", BAD_POLICIES)
def test_a_bad_policy_leaves_the_old_one_in_force(restored: World, name: str) -> None:
    zgate, before = restored.zgate, revision(restored)
    zgate.policy_file.write_text(BAD_POLICIES[name])
    with pytest.raises(CommandFailed) as failed:
        zgate.run("--socket", str(zgate.socket), "policy", "reload")
    assert failed.value.status == 2
    assert len(failed.value.output.strip().splitlines()) == 1
    assert str(zgate.policy_file) + ":" in failed.value.output
    assert f"revision {before} stays in force" in failed.value.output
    assert zgate.wait_audit("policy_refused", revision=before)
    assert revision(restored) == before
    assert ping(restored.alice, restored.internet.office.ipv4, count=1).lost == 0


def test_a_bad_policy_by_signal_is_logged_and_not_loaded(restored: World) -> None:
    before = revision(restored)
    restored.zgate.policy_file.write_text(BAD_POLICIES["not YAML"])
    restored.gateway.signal(signal.SIGHUP)
    restored.gateway.wait_for_output(f"policy not loaded, revision {before} stays", 5.0)
    assert revision(restored) == before


def test_policy_check_needs_no_gateway(tmp_path: Path, world: World) -> None:
    bad = tmp_path / "policy.yaml"
    bad.write_text(BAD_POLICIES["destinations: [10.20.0.0/33]"])
    with pytest.raises(CommandFailed) as failed:
        world.zgate.run("policy", "check", str(bad))
    assert failed.value.status == 2
    assert f"{bad}:10" in failed.value.output


# What nobody asked for.


def test_unsolicited_packets_from_the_office_reach_no_client(world: World) -> None:
    """The site has no route to the pools; here it gets one."""
    inside = world.internet.gateway_inside.ipv4
    virtual = "10.100.0.2"
    world.internet.office.namespace.ip("route replace 10.100.0.0/16 via 10.20.0.1")
    world.internet.site.ip(f"route replace 10.100.0.0/16 via {inside}")
    with Capture(world.internet.device1.namespace, "zgate-agent0") as tun:
        office = world.internet.office.namespace
        before = firewall_counter(world, "unsolicited")
        office.run("ping", "-c", "3", "-i", "0.05", "-W", "0.2", virtual, check=False)
        assert firewall_counter(world, "unsolicited") == before + 3
    assert [one for one in tun.packets if not one.is_outgoing] == []


def test_the_kernel_program_passes_nothing_unsolicited(world: World) -> None:
    """From the gateway host itself, where no forward chain stands before the program."""
    gateway = world.internet.gateway.namespace
    gateway.run("ping", "-c", "1", "-W", "0.2", "10.100.0.2", check=False)
    record = world.zgate.wait_audit("flow_denied", destination="10.100.0.2")
    assert (record["reason"], record["direction"]) == ("UNSOLICITED", "down")
    assert record["client"] == "alice"
    assert world.zgate.gateway_status()["drops"]["UNSOLICITED"] >= 1


def firewall_counter(world: World, name: str) -> int:
    listing = world.internet.gateway.namespace.run("nft", "list", "counter", "inet", "zgate", name)
    return int(listing.stdout.split("packets ")[1].split()[0])


def test_clients_do_not_reach_each_other(internet: Internet, deployment: Deployment) -> None:
    """Not even where alice's rules and routes lead to bob: nothing lets bob's end in."""
    deployment.policy_file.write_text(
        POLICY.replace('"fd00:20::/64"]', '"fd00:20::/64", 10.100.0.0/16]')
    )
    deployment.start_gateway(routes=[*ROUTES, "10.100.0.0/16"])
    deployment.start_agent("alice", internet.device1)
    bob = deployment.start_agent("bob", internet.device2)["addresses"][0].split("/")[0]
    with Capture(internet.device2.namespace, "zgate-agent0") as tun:
        internet.device1.namespace.run("ping", "-c", "2", "-W", "0.2", bob, check=False)
        record = deployment.wait_audit("flow_denied", destination=bob)
        assert (record["reason"], record["direction"]) == ("UNSOLICITED", "down")
        wait_until(lambda: deployment.counters("alice")["up_packets"] == 2, 5.0, "both counted")
    assert [one for one in tun.packets if not one.is_outgoing] == []


def test_the_gateway_checks_its_policy_before_it_starts(deployment: Deployment) -> None:
    deployment.policy_file.write_text(BAD_POLICIES["typo: deny"])
    process = deployment.spawn_gateway()
    assert process.wait(30.0) == 2
    assert len(process.output().splitlines()) == 1
    assert "policy.yaml:4: typo:" in process.output()
