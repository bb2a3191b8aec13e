"""resolv.conf, changed and put back: whatever it was, and whoever else writes there."""

from __future__ import annotations

import errno
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_agent.resolv_conf import (
    ResolvConf,
    ResolvConfError,
    is_edited,
    is_ours,
    servers_left_out,
    with_servers,
    without_servers,
)

SERVERS = (ip_address("10.100.0.1"), ip_address("fd7a::1"))
HOST = "# by the host\nsearch example.org\nnameserver 192.0.2.53\noptions edns0\n"


@pytest.fixture
def file(tmp_path: Path) -> ResolvConf:
    path = tmp_path / "resolv.conf"
    path.write_text(HOST)
    path.chmod(0o640)
    return ResolvConf(path)


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def test_ours_come_first() -> None:
    text = with_servers(HOST, SERVERS)
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")]
    assert servers == ["10.100.0.1", "fd7a::1", "192.0.2.53"]
    assert text.endswith(HOST)
    assert servers_left_out(text) == 0
    assert servers_left_out(with_servers(HOST * 2, SERVERS)) == 1


_NO_LINE_ENDS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters=_NO_LINE_ENDS)))
def test_any_text_comes_back(text: str) -> None:
    changed = with_servers(text, SERVERS)
    assert without_servers(changed) == text
    assert is_ours(changed) and not is_edited(changed)
    assert with_servers(changed, SERVERS) == changed


def test_a_file_is_put_back(file: ResolvConf, tmp_path: Path) -> None:
    assert file.put(SERVERS)
    assert file.path.read_text() == with_servers(HOST, SERVERS)
    assert file.backup.read_text() == HOST
    assert not file.put(SERVERS), "it is there already"
    assert file.put(SERVERS[1:]), "another server replaces it"
    assert file.put_back()
    assert (file.path.read_text(), file.path.stat().st_mode & 0o777) == (HOST, 0o640)
    assert names(tmp_path) == {"resolv.conf"}
    assert not file.put_back(), "there is nothing to do"


def test_a_link_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "run" / "stub.conf"
    target.parent.mkdir()
    target.write_text(HOST)
    path = tmp_path / "resolv.conf"
    path.symlink_to("run/stub.conf")
    file = ResolvConf(path)
    file.put(SERVERS)
    assert not path.is_symlink()
    assert target.read_text() == HOST, "the file behind it is somebody else's"
    # The host has moved to another network: what it says there is what stands behind ours.
    target.write_text("nameserver 198.51.100.53\n")
    assert file.put(SERVERS)
    assert "198.51.100.53" in path.read_text()
    file.put_back()
    assert path.is_symlink() and str(path.readlink()) == "run/stub.conf"
    assert names(tmp_path) == {"resolv.conf", "run"}


def test_there_may_be_none(tmp_path: Path) -> None:
    file = ResolvConf(tmp_path / "resolv.conf")
    file.put(SERVERS)
    assert is_ours(file.path.read_text())
    file.put_back()
    assert names(tmp_path) == set()


def test_an_empty_one_stays(tmp_path: Path) -> None:
    file = ResolvConf(tmp_path / "resolv.conf")
    file.path.touch()
    file.put(SERVERS)
    file.put_back()
    assert file.path.read_text() == ""


def test_what_somebody_has_replaced_is_left_alone(file: ResolvConf, tmp_path: Path) -> None:
    file.put(SERVERS)
    file.path.write_text("nameserver 203.0.113.1\n")
    assert not file.put_back()
    assert file.path.read_text() == "nameserver 203.0.113.1\n"
    assert names(tmp_path) == {"resolv.conf"}


def test_what_somebody_has_replaced_gets_our_server_again(file: ResolvConf) -> None:
    file.put(SERVERS)
    file.path.write_text("nameserver 203.0.113.1\n")
    assert file.put(SERVERS)
    assert file.backup.read_text() == "nameserver 203.0.113.1\n"
    file.put_back()
    assert file.path.read_text() == "nameserver 203.0.113.1\n"


def test_what_somebody_has_edited_stays(file: ResolvConf) -> None:
    file.put(SERVERS)
    with file.path.open("a") as text:
        text.write("nameserver 203.0.113.1\n")
    assert file.put_back()
    assert file.path.read_text() == f"{HOST}nameserver 203.0.113.1\n"
    assert not file.backup.exists()


def test_an_edited_file_that_was_a_link_stays_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text(HOST)
    file = ResolvConf(tmp_path / "resolv.conf")
    file.path.symlink_to("target")
    file.put(SERVERS)
    with file.path.open("a") as text:
        text.write("options rotate\n")
    file.put(SERVERS)
    assert not file.backup.is_symlink()
    assert file.backup.read_text() == f"{HOST}options rotate\n"
    file.put_back()
    assert not file.path.is_symlink()
    assert file.path.read_text() == f"{HOST}options rotate\n"


def test_another_process_puts_back_what_a_killed_one_left(file: ResolvConf) -> None:
    file.put(SERVERS)
    assert ResolvConf(file.path).put_back()
    assert file.path.read_text() == HOST


def test_a_folder_of_that_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").mkdir()
    with pytest.raises(ResolvConfError, match=r"cannot change .*resolv.conf: Is a directory"):
        ResolvConf(tmp_path / "resolv.conf").put(SERVERS)


def test_a_huge_file_is_told_and_left_alone(file: ResolvConf) -> None:
    file.path.write_text("# long\n" * 20_000)
    with pytest.raises(ResolvConfError, match="more than 65536 bytes"):
        file.put(SERVERS)
    assert not file.backup.exists()


def test_what_is_replaced_while_we_look_is_looked_at_again(
    file: ResolvConf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's change is not lost, whenever it comes."""
    read, theirs = ResolvConf._read, "nameserver 203.0.113.1\n"
    times = iter([True, False, True, False])

    def read_and_be_late(self: ResolvConf) -> str:
        text = read(self)
        if next(times):
            replaced = file.path.with_name("new")
            replaced.write_text(is_ours(text) * "# once more\n" + theirs)
            replaced.replace(file.path)
        return text

    monkeypatch.setattr(ResolvConf, "_read", read_and_be_late)
    file.put(SERVERS)
    assert file.path.read_text() == with_servers(theirs, SERVERS)
    assert not file.put_back()
    assert file.path.read_text() == f"# once more\n{theirs}"


@pytest.mark.parametrize("method", ["put", "put_back"])
def test_whoever_writes_all_the_time_is_left_alone(
    file: ResolvConf, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    if method == "put_back":
        file.put(SERVERS)
    read = ResolvConf._read

    def read_and_be_late(self: ResolvConf) -> str:
        text = read(self)
        with file.path.open("a") as other:
            other.write("# again\n")
        return text

    monkeypatch.setattr(ResolvConf, "_read", read_and_be_late)
    with pytest.raises(ResolvConfError, match="somebody else writes it all the time"):
        file.put(SERVERS) if method == "put" else file.put_back()
    assert names(file.path.parent) <= {"resolv.conf", "resolv.conf.zgate-backup"}
    assert file.path.read_text().count("# again\n") == 5


def test_a_change_can_be_seen(tmp_path: Path) -> None:
    file = ResolvConf(tmp_path / "resolv.conf")
    seen = {file.signature()}
    (tmp_path / "target").write_text(HOST)
    file.path.symlink_to("target")
    seen.add(file.signature())
    file.put(SERVERS)
    seen.add(file.signature())
    (tmp_path / "target").write_text(f"{HOST}# another network\n")
    seen.add(file.signature())
    file.put_back()
    seen.add(file.signature())
    assert len(seen) == 5
    assert file.signature() in seen


def test_on_a_read_only_file_system_there_is_nothing_to_put_back(
    file: ResolvConf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a service under ProtectSystem=strict: unlink fails there, whatever is there."""

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    assert not file.put_back()
