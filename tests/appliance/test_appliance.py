"""From empty machines to traffic through the tunnel by `ansible-playbook` alone, and what follows.

The tests are one story, in the order in which they stand: each goes on with the machines that the
one before has left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
import yaml
from appliance import BRANCH_NETWORKS, WIKI_TEXT, Appliance
from bed import Files, package, with_dependencies
from observed import (
    addresses,
    files_of_zgate,
    installed,
    issue,
    pinged,
    ports,
    traffic,
    wiki,
)
from zgate_lab.internet import DEVICE_NETS, host_addresses
from zgate_lab.traffic import https_get, ping
from zgate_lab.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

# The agent has a session with the other gateway before it leaves this one.
MOST_LOST_AT_A_MOVE_S = 1.0


@pytest.fixture(scope="module")
def appliance(
    empty: Files, ssh_key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Appliance]:
    folder = tmp_path_factory.mktemp("ansible")
    # What the others' packages need is on them already: that takes the longest.
    with Appliance.open(with_dependencies(), ssh_key, folder, empty=empty) as made:
        yield made


@pytest.fixture(scope="module")
def current() -> Path:
    return package.build(package.version())


@pytest.fixture(scope="module")
def newer(current: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.repacked(current, "9.0.1", tmp_path_factory.mktemp("newer"))


@pytest.fixture(scope="module")
def broken(current: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    return packages.repacked(current, "9.0.4", folder, packages.broken)


def test_a_check_of_empty_machines_says_what_would_be_done(
    appliance: Appliance, current: Path
) -> None:
    run = appliance.deploy(current, "--check", "--diff")
    assert all(changed > 0 for changed in run.changed.values())
    assert "+server_names:" in run.output
    assert "agent1 would get a certificate of gateway" in run.output
    for host in appliance.machines:
        assert files_of_zgate(appliance, host) == []


def test_one_playbook_brings_traffic(appliance: Appliance, current: Path) -> None:
    appliance.deploy(current)
    office, device = appliance.office, appliance.internet.device1.namespace.name
    assert ping(device, office.host.ipv4).lost == 0
    assert ping(device, office.host.ipv6).lost == 0
    size = 8 << 20
    got = https_get(device, f"{office.url_ipv4}bytes/{size}", office.certificate_file)
    assert (got.status, got.body_bytes) == (200, size)
    # The office sees the gateway, and nobody behind it.
    assert {one.client for one in office.requests()} == {"10.9.0.1"}


def test_a_service_behind_the_connector_answers(appliance: Appliance) -> None:
    assert wiki(appliance, "agent1") == WIKI_TEXT
    assert wiki(appliance, "agent2") == ""


def test_keys_are_roots_and_stay_where_they_belong(appliance: Appliance) -> None:
    for host, machine in {**appliance.agents, "connector": appliance.connector}.items():
        keys = machine.shell("find /etc/zgate -name '*.key' -printf '%m %U %p\\n'").splitlines()
        assert len(keys) == 1, (host, keys)
        assert keys[0].startswith("600 0 ")
    on_gateway = appliance.gateway.shell(
        "find / -xdev -name '*.key' -path '*zgate*' -printf '%f\\n'"
    )
    assert sorted(on_gateway.split()) == ["audit.key", "ca.key", "gateway.key", "quic.key"]


def test_a_second_run_changes_nothing(appliance: Appliance, current: Path) -> None:
    before = addresses(appliance)
    run = appliance.deploy(current)
    assert run.changed == dict.fromkeys(appliance.machines, 0), run.output
    assert addresses(appliance) == before


def test_what_needs_no_restart_is_reloaded(appliance: Appliance, current: Path) -> None:
    machine = appliance.gateway
    started = machine.unit("zgate-gateway.service", "ExecMainPID")
    policy = appliance.variables["zgate_gateways"]["zgate_gateway_policy"]
    policy["clients"]["agent2"] = policy["clients"]["agent1"]
    appliance.variables["zgate_gateways"]["zgate_gateway_log"] = {"level": "debug"}
    appliance.write_inventory()
    run = appliance.deploy(current, "--limit", "gateway")
    assert run.changed["gateway"] == 3, run.output
    assert "Reload zgate-gateway" in run.output
    assert machine.unit("zgate-gateway.service", "ExecMainPID") == started
    wait_until(lambda: wiki(appliance, "agent2") == WIKI_TEXT, 30, "the new policy")


def test_a_bad_file_replaces_nothing(appliance: Appliance, current: Path) -> None:
    before = appliance.gateway.shell("cat /etc/zgate/policy.yaml /etc/zgate/gateway.yaml")
    bad_policy = {"version": "1.0", "clients": {"agent1": {"rules": [{"id": "x", "type": "?"}]}}}
    run = appliance.deploy(
        current, "--limit", "gateway", check=False, zgate_gateway_policy=bad_policy
    )
    assert run.failed == {"gateway"}
    assert "failed to validate" in run.output
    run = appliance.deploy(
        current, "--limit", "gateway", check=False, zgate_gateway_pool={"ipv4": "10.0.0.0/33"}
    )
    assert run.failed == {"gateway"}
    assert "pool.ipv4" in run.output
    assert appliance.gateway.shell("cat /etc/zgate/policy.yaml /etc/zgate/gateway.yaml") == before
    assert ping(appliance.internet.device1.namespace.name, appliance.office.host.ipv4).lost == 0


def test_given_files_take_the_place_of_issued_ones(
    appliance: Appliance, current: Path, tmp_path: Path
) -> None:
    group = appliance.variables["zgate_agents"]
    given = issue(appliance, tmp_path, "agent2", "--group", "staff")
    group["zgate_agent_identity_files"] = given
    appliance.write_inventory()
    run = appliance.deploy(current, "--limit", "agent2")
    assert run.changed["agent2"] == 3, run.output  # the key, the certificate; the restart
    assert ping(appliance.internet.device2.namespace.name, appliance.office.host.ipv4).lost == 0
    assert Path(given["key"]).read_text() not in run.output
    del group["zgate_agent_identity_files"]


def test_a_gateway_of_another_authority_gets_a_new_certificate_by_a_reload(
    appliance: Appliance, current: Path, tmp_path: Path
) -> None:
    group, machine = appliance.variables["zgate_gateways"], appliance.gateway
    words = ("--usage", "server", "--ip", str(appliance.internet.gateway.ipv4))
    given = issue(appliance, tmp_path, "gateway", *words)
    (tmp_path / "crl.pem").write_text(machine.read("/var/lib/zgate/pki/crl.pem"))
    group["zgate_gateway_identity_files"] = {**given, "crl": str(tmp_path / "crl.pem")}
    appliance.write_inventory()
    appliance.deploy(current, "--limit", "gateway")
    assert "/etc/zgate/pki/gateway.key" in machine.read("/etc/zgate/gateway.yaml")
    wait_until(lambda: len(addresses(appliance)) == 3, 60, "all clients to be back")
    started = machine.unit("zgate-gateway.service", "ExecMainPID")

    issue(appliance, tmp_path, "gateway", *words)
    run = appliance.deploy(current, "--limit", "gateway")
    assert run.changed["gateway"] == 3, run.output  # the key, the certificate; the reload
    assert machine.unit("zgate-gateway.service", "ExecMainPID") == started
    del group["zgate_gateway_identity_files"]
    appliance.write_inventory()
    appliance.deploy(current)
    assert ping(appliance.internet.device2.namespace.name, appliance.office.host.ipv4).lost == 0


def test_an_upgrade_under_traffic(appliance: Appliance, newer: Path) -> None:
    before = addresses(appliance)
    with traffic(appliance):
        appliance.deploy(newer)
    assert installed(appliance) == {"9.0.1"}
    assert addresses(appliance) == before
    status = yaml.safe_load(appliance.gateway.run("zgatectl", "status", "--json").stdout)
    assert status["version"] == "9.0.1"
    again = appliance.deploy(newer)
    assert again.changed == dict.fromkeys(appliance.machines, 0), again.output


@pytest.fixture(scope="module")
def repository(
    appliance: Appliance, tmp_path_factory: pytest.TempPathFactory
) -> packages.Repository:
    # Where all machines reach what runs beside the controller.
    address = str(host_addresses(DEVICE_NETS[1], 1)[0].ip)
    folder = tmp_path_factory.mktemp("repository")
    return packages.Repository(appliance.internet.isp, address, folder)


def let_a_second_gateway_in(appliance: Appliance, address: str) -> None:
    """Write it down: another port, at one address; and a network behind the connector."""
    variables = appliance.variables
    variables["gateway2"] = {
        "zgate_gateway_server_names": [address],
        "zgate_gateway_listen": {"address": address, "port": 8443},
    }
    gateways = [str(appliance.gateway.address), f"{address}:8443"]
    variables["zgate_agents"]["zgate_agent_gateways"] = gateways
    variables["zgate_connectors"]["zgate_connector_gateways"] = gateways
    variables["zgate_connectors"]["zgate_connector_networks"] = [
        {"network": BRANCH_NETWORKS[0], "masquerade": True},
        BRANCH_NETWORKS[1],
    ]
    group = variables["zgate_gateways"]
    group["zgate_gateway_authority_host"] = "gateway"
    policy = group["zgate_gateway_policy"]
    policy["connectors"]["connector"]["routes"] = BRANCH_NETWORKS
    rules = policy["groups"]["staff"]["rules"]
    rules.append({**rules[0], "id": "branch", "destinations": BRANCH_NETWORKS})
    appliance.write_inventory()


def test_a_second_gateway_joins_and_a_connector_leads_into_a_network(
    appliance: Appliance, repository: packages.Repository, newer: Path
) -> None:
    repository.publish(newer)
    second, branch = appliance.add_gateway(), appliance.add_branch()
    for machine in appliance.machines.values():
        repository.tell(machine)
    let_a_second_gateway_in(appliance, str(second.address))
    run = appliance.deploy(None, "--check", "--limit", "gateway2")
    assert "gateway2 would get a certificate of gateway" in run.output
    assert files_of_zgate(appliance, "gateway2") == []

    # No package is named: the new machine gets what the repository has, the others keep theirs.
    appliance.deploy(None)
    assert installed(appliance) == {"9.0.1"}
    assert second.read("/etc/zgate/pki/ca.crt") == appliance.gateway.read(
        "/var/lib/zgate/pki/ca.crt"
    )
    assert ports(second) == {f"{second.address}:8443"}
    assert set(addresses(appliance)) == {"agent1", "agent2", "connector"}
    assert set(addresses(appliance, "gateway2")) == {"connector"}

    # What the unit lets a connector of networks do, and no more: CAP_NET_ADMIN.
    pid = appliance.connector.unit("zgate-connector@default", "MainPID")["MainPID"]
    assert "CapEff:\t0000000000001000" in appliance.connector.read(f"/proc/{pid}/status")
    device, size = appliance.internet.device1.namespace.name, 4 << 20
    for url in (branch.url_ipv4, branch.url_ipv6):
        got = https_get(device, f"{url}bytes/{size}", branch.certificate_file)
        assert (got.status, got.body_bytes) == (200, size)
    # The branch sees the connector's host, and nobody behind it.
    assert {one.client for one in branch.requests()} == {"10.40.0.2", "fd00:40::2"}
    assert wiki(appliance, "agent1") == WIKI_TEXT


def test_gateways_are_upgraded_one_after_the_other_from_a_repository(
    appliance: Appliance, repository: packages.Repository, current: Path, tmp_path: Path
) -> None:
    repository.publish(packages.repacked(current, "9.0.3", tmp_path))
    issue(appliance, tmp_path, "leaver")
    user = ("runuser", "-u", "zgate-gateway", "--")
    appliance.gateway.run(*user, "zgatectl", "pki", "revoke", "leaver")
    # At every address from now on; agents know the same port.
    appliance.variables["gateway2"]["zgate_gateway_listen"] = {"port": 8443}
    appliance.write_inventory()
    with pinged(appliance, MOST_LOST_AT_A_MOVE_S):
        appliance.deploy(None, "--limit", "zgate_gateways", zgate_common_version="latest")
    for gateway, machine in appliance.gateways.items():
        status = json.loads(machine.run("zgatectl", "status", "--json").stdout)
        assert (status["version"], status["drain"]) == ("9.0.3", None), gateway
    # To the second one; and back, when its turn came, to the first one, which ran again.
    assert set(addresses(appliance)) == {"agent1", "agent2", "connector"}
    assert ports(appliance.gateways["gateway2"]) == {"*:8443"}
    # What has been revoked meanwhile is known to the other one, too.
    assert appliance.gateways["gateway2"].read("/etc/zgate/pki/crl.pem") == appliance.gateway.read(
        "/var/lib/zgate/pki/crl.pem"
    )


def test_agents_that_know_another_gateway_wait_for_the_first_if_nobody_drains_it(
    appliance: Appliance,
) -> None:
    before = addresses(appliance)
    with traffic(appliance):
        appliance.gateway.run("systemctl", "restart", "zgate-gateway")
    wait_until(lambda: addresses(appliance) == before, 60, "all clients to be back")


def test_a_broken_version_is_taken_back(appliance: Appliance, broken: Path) -> None:
    before = addresses(appliance)
    configuration = appliance.gateway.read("/etc/zgate/gateway.yaml")
    # The new version comes with other settings: they go with it.
    with pinged(appliance, MOST_LOST_AT_A_MOVE_S):
        run = appliance.deploy(
            broken,
            check=False,
            zgate_gateway_workers=1,
            zgate_gateway_listen={"port": 9443},
            zgate_common_ready_timeout_s=20,
        )
    assert run.failed == {"gateway"}
    assert "9.0.4 did not become ready; 9.0.3 runs again" in run.output
    # Nobody else was touched.
    assert set(run.changed) == {"gateway"}
    assert installed(appliance) == {"9.0.1", "9.0.3"}
    assert appliance.gateway.read("/etc/zgate/gateway.yaml") == configuration
    assert ports(appliance.gateway) == {"*:443"}
    # The agents had been sent to the other one, and are there; the connector is at both.
    assert set(addresses(appliance, "gateway2")) == set(before)
    wait_until(lambda: set(addresses(appliance)) == {"connector"}, 60, "the connector to be back")
    again = appliance.deploy(None)
    assert again.changed == dict.fromkeys(appliance.machines, 0), again.output


def test_a_removed_zgate_keeps_its_state_and_a_purged_one_nothing(
    appliance: Appliance, newer: Path
) -> None:
    # From the second gateway to the first: they do not go back by themselves.
    for agent in appliance.agents.values():
        agent.run("systemctl", "restart", "zgate-agent@default")
    wait_until(lambda: len(addresses(appliance)) == 3, 60, "all clients at the first gateway")
    before = addresses(appliance)
    appliance.controller.run("uninstall.yml")
    assert installed(appliance) == {""}
    assert appliance.gateway.exists("/var/lib/zgate/zgate.db")
    assert appliance.gateway.exists("/etc/zgate/gateway.yaml")
    appliance.deploy(newer)
    assert addresses(appliance) == before

    appliance.controller.run("uninstall.yml", zgate_common_purge=True)
    for host, machine in appliance.machines.items():
        assert files_of_zgate(appliance, host) == [], host
        assert "zgate" not in machine.output("ip", "-o", "link")
        assert "zgate" not in machine.output("nft", "list", "ruleset")
        assert machine.output("systemctl", "is-system-running") == "running"
    again = appliance.controller.run("uninstall.yml", zgate_common_purge=True)
    assert again.changed == dict.fromkeys(appliance.machines, 0), again.output
