"""Every command of docs/zgatectl.md is run against a gateway, and what only a real one shows."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from e2e_support.world import World
from zgate_cli.json_schemas import ANSWERS
from zgate_lab.deployment import BIN
from zgate_lab.namespace import command_in
from zgate_lab.screen import Screen
from zgate_lab.traffic import ping

pytestmark = pytest.mark.privileged

DOCUMENT = Path(__file__).parents[2] / "docs" / "zgatectl.md"
#: What may end otherwise than with 0: a lab has no systemd, and its clock is nobody's.
MAY_FAIL = {"doctor", "netcheck"}


def commands() -> Iterator[str]:
    for block in re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ zgatectl"):
                yield line.removeprefix("$ ")


def argv_of(world: World, line: str, tmp_path: Path) -> list[str | Path]:
    """The command line with this world's files, where the document has an appliance's."""
    zgate = world.zgate
    places = {
        "/etc/zgate/policy.yaml": zgate.policy_file,
        "/etc/zgate/gateway.yaml": zgate.directory / "gateway.yaml",
        "/etc/zgate/agent.yaml": zgate.directory / "alice.yaml",
        "gateway-bundle.tar.gz": tmp_path / "gateway-bundle.tar.gz",
        "gw2.example.org": str(world.internet.gateway.ipv6),
    }
    words: list[str | Path] = [places.get(one, one) for one in shlex.split(line)[1:]]
    if ">" in words:
        words = words[: words.index(">")]
    host = world.internet.device1 if words[0] == "netcheck" else world.internet.gateway
    return [*command_in(host.namespace.name, [BIN / "zgatectl", *words])]


@pytest.mark.parametrize("line", list(commands()))
def test_a_documented_command(world: World, line: str, tmp_path: Path) -> None:
    world.connect_all()
    argv = argv_of(world, line, tmp_path)
    environment = {**os.environ, "ZGATE_SOCKET": str(world.zgate.socket)}
    name = shlex.split(line)[1]
    if name == "top" and "--json" not in line:
        with Screen(*argv, ZGATE_SOCKET=str(world.zgate.socket)) as screen:
            screen.wait_for("0 of 0" if "--filter" in line else "alice")
            screen.press("q")
            assert screen.wait_ended() == 0
            screen.assert_clean()
        return
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=90, env=environment
    )
    assert done.returncode in ({0, 1} if name in MAY_FAIL else {0}), done.stderr
    assert done.stdout and "Traceback" not in done.stderr


def test_top_shows_who_is_there_and_what_goes_through(world: World) -> None:
    world.connect_all()
    alice = world.zgate.sessions()["alice"]
    command = [BIN / "zgatectl", "--socket", world.zgate.socket, "top", "-i", "0.5"]
    with Screen(*command, width=150) as screen:
        virtual = alice["addresses"][0].split("/")[0]

        def is_shown() -> bool:
            lines = [one for one in screen.text.splitlines() if one.startswith("alice")]
            return len(lines) == 1 and alice["peer"] in lines[0] and virtual in lines[0]

        screen.wait_for(is_shown)

        def has_rate() -> bool:
            ping(world.alice, world.internet.office.ipv4, count=20)
            screen.read()
            (line,) = [one for one in screen.text.splitlines() if one.startswith("alice")]
            return re.search(r"[▁-█] +[\d.]+k", line) is not None

        screen.wait_for(has_rate)
        screen.press("f")
        screen.wait_for("allow-office-ping")
        screen.press("q")
        assert screen.wait_ended() == 0


def ask(world: World, *arguments: str | Path, code: int = 0) -> Any:
    host = world.internet.gateway.namespace
    done = host.run(
        BIN / "zgatectl", "--socket", world.zgate.socket, *arguments, "--json", check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_doctor_finds_nothing_broken_on_a_gateway_that_works(world: World) -> None:
    report = ask(world, "doctor", "--config", world.zgate.directory / "gateway.yaml")
    broken = [one for one in report["findings"] if one["verdict"] == "fail"]
    assert broken == []
    found = {one["name"]: one["text"] for one in report["findings"]}
    assert found["udp_port"] == "443 is the gateway's"
    assert found["forwarding_ipv4"] == "on"
    assert found["chain"] == "agents that dial gateway.demo accept it"


def written_forms(key: bytes) -> list[str]:
    """How a key would look in a text."""
    if key.startswith(b"-----"):
        return [one for one in key.decode().splitlines() if one and not one.startswith("-----")]
    return [key.hex(), base64.b64encode(key).decode()]


def test_a_bundle_of_a_gateway_holds_no_key_and_no_address(world: World, tmp_path: Path) -> None:
    world.connect_all()
    target, config = tmp_path / "b.tar.gz", world.zgate.directory / "gateway.yaml"
    report = ask(world, "bundle", "-o", target, "--config", config)
    there = {one["path"] for one in report["files"] if one["error"] is None}
    assert there >= {
        "status.json",
        "gateway.yaml",
        "policy.yaml",
        "nft.txt",
        "bpf.txt",
        "tc-ingress.txt",
    }
    keys = [
        line
        for file in world.zgate.directory.rglob("*.key")
        for line in written_forms(file.read_bytes())
    ]
    assert len(keys) > 5
    texts = {}
    with tarfile.open(target) as archive:
        for one in archive.getmembers():
            inner = archive.extractfile(one)
            assert inner is not None
            texts[one.name] = inner.read().decode()
    for name, text in texts.items():
        assert "PRIVATE KEY" not in text
        assert not [key for key in keys if key in text], name
        for word in re.findall(r"[0-9A-Fa-f:.]{3,}", text):
            try:
                address = ip_address(word.strip(".:"))
            except ValueError:
                continue
            assert address.is_loopback or address.is_unspecified, (name, word)
    assert "prog_type" in texts["b/bpf.txt"]


def test_the_document_shows_commands_of_each_kind() -> None:
    shown = {shlex.split(one)[1] for one in commands()}
    assert shown >= {
        "top",
        "status",
        "ping",
        "netcheck",
        "doctor",
        "bundle",
        "why",
        "flows",
        "kick",
    }
    assert shown <= {name.split()[0] for name in ANSWERS} | {"completion"}
