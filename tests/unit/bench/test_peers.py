import socket
import stat
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from bench.errors import BenchError
from bench.peers import wireguard_go
from bench.peers.openvpn import Identity, write_config
from bench.peers.peer import check_programs, find, first_line


def test_missing_programs_name_their_packages() -> None:
    with pytest.raises(BenchError) as caught:
        check_programs({"no-such-vpn": "vpn-package", "no-such-tool": "tools", "sh": "dash"})
    text = str(caught.value)
    assert "missing: no-such-tool, no-such-vpn" in text
    assert text.endswith("apt-get install --no-install-recommends tools vpn-package")
    assert "dash" not in text


def test_sbin_is_looked_at_whatever_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find("ldconfig") is not None
    check_programs({"ldconfig": "libc-bin"})


def test_first_line_of_what_a_program_says() -> None:
    assert first_line("sh", "-c", "echo one; echo two") == "one"
    assert first_line("sh", "-c", "echo version >&2; exit 1") == "version"
    assert first_line("true") == ""


def test_openvpns_file_is_private_and_trusts_the_other_end_only(tmp_path: Path) -> None:
    own = Identity.make("gateway", ExtendedKeyUsageOID.SERVER_AUTH)
    other = Identity.make("client", ExtendedKeyUsageOID.CLIENT_AUTH)
    file = tmp_path / "server.conf"
    write_config(file, "dev tun\n", own, other)
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"peer-fingerprint {other.fingerprint}\n" in text
    assert own.fingerprint not in text
    assert len(other.fingerprint.split(":")) == 32


def test_sockets_of_dead_benches_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "zgbdead.sock"))
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as foreign:
        live.bind(str(tmp_path / "zgblive.sock"))
        live.listen()
        foreign.bind(str(tmp_path / "wg0.sock"))
        wireguard_go.remove_dead_sockets(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wg0.sock", "zgblive.sock"]


def test_no_directory_no_sockets(tmp_path: Path) -> None:
    wireguard_go.remove_dead_sockets(tmp_path / "absent")
