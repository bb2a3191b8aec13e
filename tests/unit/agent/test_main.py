"""The command line: exit codes, and one line for each mistake."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from zgate_agent import main as cli
from zgate_agent.config import AgentConfig
from zgate_agent.machine import State
from zgate_agent.status import AgentStatus
from zgate_datapath import engine
from zgate_host.status_socket import StatusServer
from zgate_identity.authority import CertificateAuthority

from .conftest import a_status


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


def line(result: Result) -> str:
    """The one line on standard error."""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", tmp_path / "none.yaml")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What an agent needs, and a key that fits nothing."""
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(tmp_path / "pki", now)
    alice, bob = (authority.issue(name, now=now) for name in ("alice", "bob"))
    files = {
        "ca": (tmp_path / "ca.crt", alice.ca_pem),
        "certificate": (tmp_path / "alice.crt", alice.certificate_pem),
        "key": (tmp_path / "alice.key", alice.key_pem),
        "other_key": (tmp_path / "bob.key", bob.key_pem),
    }
    for file, content in files.values():
        file.write_bytes(content)
        file.chmod(0o600)
    return {name: file for name, (file, _) in files.items()}


@pytest.fixture
def flags(files: dict[str, Path]) -> list[object]:
    return ["--ca", files["ca"], "--cert", files["certificate"], "--key", files["key"]]


def test_nothing_given(no_default: None) -> None:
    result = call("run")
    assert result.exit_code == 2
    assert "none.yaml: name another file with --config, or give --gateway" in line(result)
    result = call("run", "--gateway", "gw.example")
    assert line(result).startswith("zgate-agent: command line: ca: expected a value")


def test_a_configuration_with_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("gateway: gw\nca: /c\ncertificate: /a\nkey: /k\ninsecure: true\n")
    result = call("run", "--config", file)
    assert result.exit_code == 2
    assert line(result).startswith(f"zgate-agent: {file}:5: insecure: expected one of")


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_native_engine_that_was_not_built(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: list[str]
) -> None:
    monkeypatch.setattr(engine, "native_problem", lambda: "the native engine is not built")
    file = tmp_path / "agent.yaml"
    names = "".join(f"{name}: {files[name]}\n" for name in ("ca", "certificate", "key"))
    file.write_text(f"gateway: gw.example\n{names}engine: native\n")
    result = call("run", "--config", file, *check)
    assert result.exit_code == 2
    assert "not built; install a compiler" in line(result)


def test_a_file_that_is_not_there(no_default: None, flags: list[object]) -> None:
    flags[1] = "/nonexistent/ca.crt"
    result = call("run", "--gateway", "gw.example", *flags)
    assert result.exit_code == 2
    assert "/nonexistent/ca.crt" in line(result)


def test_a_key_that_does_not_fit(
    no_default: None, flags: list[object], files: dict[str, Path]
) -> None:
    flags[5] = files["other_key"]
    result = call("run", "--gateway", "gw.example", *flags)
    assert result.exit_code == 2
    assert str(files["other_key"]) in line(result) or str(files["certificate"]) in line(result)


def test_check_reads_everything_and_starts_nothing(no_default: None, flags: list[object]) -> None:
    result = call("run", "--gateway", "gw.example", *flags, "--check")
    assert (result.exit_code, result.stdout) == (0, "command line: ok\n")


def test_flags_become_the_configuration(
    no_default: None, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AgentConfig] = []

    def run(config: AgentConfig, read_again: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli, "has_net_admin", lambda: True)
    monkeypatch.setattr(cli, "configure_logging", lambda level, log_format: None)
    more = "--name vpn0 --mtu 1300 --mode split --route 10.0.0.0/8 --route fd00::/8"
    more += " --on-disconnect release --server-name gw.other --log-level debug --runtime-dir /r"
    more += " --gateway gw.example:8443 --gateway two.example"
    result = call("run", *flags, *more.split())
    assert result.exit_code == 0, result.output
    config = seen[0].model_dump(mode="json")
    assert config["given_gateways"] == ["gw.example:8443", "two.example:443"]
    assert config["tun"] == {"name": "vpn0", "mtu_bytes": 1300}
    assert config["routes"] == ["10.0.0.0/8", "fd00::/8"]
    assert (config["on_disconnect"], config["server_name"]) == ("release", "gw.other")
    assert (config["log"], config["runtime_dir"]) == ({"level": "debug", "format": "auto"}, "/r")


@pytest.mark.parametrize("in_file", ["gateway: one.example", "gateways: [one.example, b.example]"])
def test_a_gateway_on_the_command_line_replaces_those_in_the_file(
    no_default: None, flags: list[object], in_file: str, tmp_path: Path
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"{in_file}\n")
    result = call("run", "--config", file, "--gateway", "two.example", *flags, "--check")
    assert result.exit_code == 0, result.output


def test_without_the_capability(
    no_default: None, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "has_net_admin", lambda: False)
    result = call("run", "--gateway", "gw.example", *flags)
    assert result.exit_code == 1
    assert "CAP_NET_ADMIN is missing" in line(result)


@contextmanager
def agent_that_says(status: AgentStatus, file: Path) -> Iterator[None]:
    """A status server in a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> StatusServer:
        server = StatusServer(file, lambda: status)
        await server.start()
        return server

    def body() -> None:
        server = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=body)
    thread.start()
    assert ready.wait(10)
    yield
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.parametrize(
    ("state", "code"), [(State.CONNECTED, 0), (State.BACKOFF, 1), (State.CONNECTING, 1)]
)
def test_status_tells_by_its_exit_code(tmp_path: Path, state: State, code: int) -> None:
    with agent_that_says(a_status(state, "because"), tmp_path / "agent.sock"):
        result = call("status", "--runtime-dir", tmp_path, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["state"] == state


def test_status_finds_the_folder_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"gateway: gw\nca: /c\ncertificate: /a\nkey: /k\nruntime_dir: {tmp_path}\n")
    with agent_that_says(a_status(), tmp_path / "agent.sock"):
        result = call("status", "--config", file)
    assert result.exit_code == 0
    assert "connected, for" in result.stdout


def test_status_without_an_agent(tmp_path: Path) -> None:
    result = call("status", "--runtime-dir", tmp_path)
    assert result.exit_code == 1
    assert line(result).startswith("not running: no agent answers on")
    result = call("status", "--runtime-dir", tmp_path, "--json")
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (1, "not running")


def test_status_of_the_only_unit(tmp_path: Path) -> None:
    (tmp_path / "laptop").mkdir()
    with agent_that_says(a_status(), tmp_path / "laptop" / "agent.sock"):
        result = call("status", "--runtime-dir", tmp_path, "--json")
    assert result.exit_code == 0 and json.loads(result.output)["state"] == "connected"
    for name in ("laptop", "ward"):
        (tmp_path / name).mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(tmp_path / name / "agent.sock"))
    result = call("status", "--runtime-dir", tmp_path)
    assert result.exit_code == 2
    assert "several agents run here" in result.output


def test_status_of_a_broken_configuration(tmp_path: Path) -> None:
    result = call("status", "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml" in line(result)
