"""Compiled programs on the disk: found as they were kept; whatever else is there is not used."""

import base64
import hashlib
import json
import logging
import os
import subprocess
import sys

import pytest
from zgate_bpf import loader, program_cache
from zgate_bpf.program_cache import KEPT_ENTRIES, cache_directory, open_cache

KEY = "ab" * 32
CODE = {"zg_one": bytes(range(16)), "zg_two": b"\x95" + bytes(7)}
FUNCTIONS = ("zg_one", "zg_two")
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "cache"


def put(directory, key=KEY, code=CODE):
    with open_cache(directory) as cache:
        cache.put("policy", key, code)


def get(directory, key=KEY, functions=FUNCTIONS):
    with open_cache(directory) as cache:
        return None if cache is None else cache.get("policy", key, functions)


def entry(directory, key=KEY):
    return directory / f"policy-{key}.bpf"


def written(key, functions):
    """An entry whose digest is right."""
    body = json.dumps({"key": key, "functions": functions}).encode()
    return b"\n".join((b"zgate-bpf 1", hashlib.sha256(body).hexdigest().encode(), body))


# Found, and for whom.


def test_what_was_kept_is_found(directory, caplog):
    assert get(directory) is None
    put(directory)
    assert get(directory) == CODE
    assert get(directory, functions=("zg_two",)) == {"zg_two": CODE["zg_two"]}
    assert get(directory, key="cd" * 32) is None
    assert not caplog.records


def test_only_we_can_read_and_write_it(directory):
    put(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert entry(directory).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in directory.iterdir()] == [entry(directory).name]


def test_nothing_stays_open(directory):
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
    put(directory)
    get(directory)
    entry(directory).write_text("no")
    get(directory)
    directory.chmod(0o777)
    get(directory)
    # What earlier tests have left may be closed meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_the_place(monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", "/a/b:/c")
    assert str(cache_directory()) == "/a/b"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setattr(program_cache.os, "geteuid", lambda: 1000)
    assert cache_directory() is None
    monkeypatch.setattr(program_cache.os, "geteuid", lambda: 0)
    assert cache_directory() == program_cache.DEFAULT_DIRECTORY


# What is not used.


def is_refused(directory, caplog, text):
    caplog.clear()
    assert get(directory) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    return text in record.getMessage()


def test_every_changed_byte_is_found(directory, caplog):
    put(directory, code={"zg_one": CODE["zg_one"], "zg_two": CODE["zg_two"]})
    whole = entry(directory).read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        entry(directory).write_bytes(damaged)
        assert is_refused(directory, caplog, "it is damaged"), at
    entry(directory).write_bytes(whole)
    assert get(directory) == CODE


def test_every_shortened_and_lengthened_file_is_found(directory, caplog):
    put(directory)
    whole = entry(directory).read_bytes()
    for length in range(len(whole)):
        entry(directory).write_bytes(whole[:length])
        assert is_refused(directory, caplog, "it is damaged"), length
    entry(directory).write_bytes(whole + b"\n")
    assert is_refused(directory, caplog, "it is damaged")


@pytest.mark.parametrize(
    ("key", "functions"),
    [
        pytest.param("cd" * 32, {"zg_one": "AAAAAAAAAAA=", "zg_two": "AAAAAAAAAAA="}, id="key"),
        pytest.param(KEY, {"zg_one": "AAAAAAAAAAA="}, id="function missing"),
        pytest.param(KEY, {"zg_one": "AAAAAAAAAAA=", "zg_two": "AAAA"}, id="half an instruction"),
        pytest.param(KEY, {"zg_one": "AAAAAAAAAAA=", "zg_two": ""}, id="no instruction"),
        pytest.param(KEY, {"zg_one": "AAAAAAAAAAA=", "zg_two": 7}, id="no text"),
        pytest.param(KEY, ["zg_one", "zg_two"], id="a list"),
    ],
)
def test_a_whole_entry_of_something_else_is_refused(directory, caplog, key, functions):
    put(directory)
    entry(directory).write_bytes(written(key, functions))
    assert is_refused(directory, caplog, "it is not what its name says")


def test_what_was_refused_is_replaced(directory):
    put(directory)
    entry(directory).write_bytes(b"no")
    put(directory)
    assert get(directory) == CODE


@as_root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_somebody_elses_is_refused(directory, caplog, what):
    put(directory)
    os.chown(entry(directory) if what == "file" else directory, NOBODY, NOBODY)
    assert is_refused(directory, caplog, "belongs to user 65534")


@pytest.mark.parametrize("mode", [0o20, 0o2])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_may_write_is_refused(directory, caplog, what, mode):
    put(directory)
    path = entry(directory) if what == "file" else directory
    path.chmod(path.stat().st_mode | mode)
    assert is_refused(directory, caplog, "others may write it")


@as_root
def test_a_service_uses_what_root_has_kept(directory, tmp_path):
    put(directory)
    for path, mode in ((directory, 0o755), (entry(directory), 0o644)):
        path.chmod(mode)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    pid = os.fork()
    if pid == 0:  # a child of its own user, which ends here whatever happens
        status = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = 0 if get(directory) == CODE else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_links_and_pipes_are_refused(directory, caplog, tmp_path):
    put(directory)
    entry(directory).rename(tmp_path / "real")
    entry(directory).symlink_to(tmp_path / "real")
    assert is_refused(directory, caplog, "symbolic links")
    entry(directory).unlink()
    os.mkfifo(entry(directory))
    assert is_refused(directory, caplog, "it is no ordinary file")


# Where nothing can be kept.


def test_a_place_that_cannot_be_made(tmp_path, caplog):
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "below", tmp_path / "missing" / "below"):
        caplog.clear()
        with open_cache(directory) as cache:
            assert cache is None
        assert f"not kept in {directory}: " in caplog.text


def test_an_entry_that_cannot_be_written(directory, caplog):
    entry(directory).mkdir(parents=True)
    directory.chmod(0o700)
    put(directory)
    assert "is not kept, the next start compiles: Is a directory" in caplog.text
    assert [file.name for file in directory.iterdir()] == [entry(directory).name]


def test_without_a_directory_there_is_none():
    with open_cache(None) as cache:
        assert cache is None


# What goes.


def test_the_entries_unused_for_longest_go(directory):
    oldest, older, *rest = [f"{number:064x}" for number in range(KEPT_ENTRIES)]
    for used_s, key in enumerate((oldest, older, *rest), 1):
        put(directory, key=key)
        os.utime(entry(directory, key), (used_s, used_s))
    get(directory, key=oldest)  # and so it is in use
    put(directory, key="ff" * 32)
    kept = {file.name for file in directory.iterdir()}
    assert kept == {entry(directory, key).name for key in (oldest, *rest, "ff" * 32)}


def test_use_is_noted(directory):
    put(directory)
    os.utime(entry(directory), (1, 1))
    get(directory)
    assert entry(directory).stat().st_mtime > 1_000_000_000


def test_what_a_killed_writer_left_goes_in_time(directory):
    put(directory)
    old, young = directory / ".policy.old.tmp", directory / ".policy.young.tmp"
    for file in (old, young, directory / "README"):
        file.write_text("")
        os.utime(file, (1, 1))
    os.utime(young)
    put(directory)
    assert not old.exists()
    assert young.exists()
    assert (directory / "README").exists()


# The loader.

STEERING = ("zg_steer_udp", "zg_steer_tun")
MAPS = {"sockets": 5, "owners": 6, "networks": 7}
SECRETS = {"mask_factor": 3 << 40 | 1, "mask_offset": 1 << 63 | 5}


def steering(workers=2, maps=MAPS, secrets=SECRETS):
    return loader.compile_program(
        "steering", STEERING, {"ZG_WORKERS": workers}, maps=maps, constants=secrets, assertions=""
    )


@pytest.fixture
def cached(directory, monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", str(directory))
    return directory


def entries(directory):
    return sorted(file.name for file in directory.glob("*.bpf"))


@pytest.fixture
def compilations(monkeypatch):
    """The sources that were compiled."""
    made = []
    compile_source = loader.compile_source

    def noting(source):
        made.append(source)
        return compile_source(source)

    monkeypatch.setattr(loader, "compile_source", noting)
    return made


def test_a_hit_is_what_a_miss_is(cached, compilations):
    miss = steering()
    assert steering() == miss
    other = {"sockets": 15, "owners": 16, "networks": 17}
    hit = steering(maps=other, secrets={"mask_factor": 7, "mask_offset": 9})
    assert len(compilations) == len(entries(cached)) == 1
    cached.joinpath(entries(cached)[0]).unlink()
    assert steering(maps=other, secrets={"mask_factor": 7, "mask_offset": 9}) == hit != miss
    assert len(compilations) == 2


def test_another_define_is_another_entry(cached, compilations):
    assert steering(workers=2) != steering(workers=3)
    assert len(compilations) == len(entries(cached)) == 2


def test_a_damaged_entry_is_compiled_and_replaced(cached, compilations, caplog):
    miss = steering()
    (name,) = entries(cached)
    (cached / name).write_bytes(b"zgate-bpf 1\n")
    assert steering() == miss == steering()
    assert "it is damaged" in caplog.text
    assert len(compilations) == 2


def test_without_a_cache_all_is_compiled(monkeypatch, tmp_path, compilations, caplog):
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "missing" / "below"))
    assert steering() == steering()
    assert len(compilations) == 2
    assert "not kept" in caplog.text


def test_sources_that_change_meanwhile_are_not_kept(cached, monkeypatch):
    keys = iter(["11" * 32, "22" * 32])
    monkeypatch.setattr(loader, "program_key", lambda _source: next(keys))
    assert steering()
    assert entries(cached) == []


def test_foreign_maps_in_an_entry_go_nowhere(cached):
    """Were one to get past the digest: a descriptor of nobody's is not what it asks for."""
    steering()
    (name,) = entries(cached)
    found = json.loads((cached / name).read_bytes().split(b"\n", 2)[2])
    stranger = base64.b64encode(bytes.fromhex("1811000003000000" + "00" * 8)).decode()
    (cached / name).write_bytes(
        written(found["key"], {**found["functions"], "zg_steer_tun": stranger})
    )
    with pytest.raises(loader.BpfLoadError, match="instruction 0 names an unknown map"):
        steering()


def test_with_a_hit_there_is_no_compiler(cached):
    """Neither bcc's modules nor its libraries, and so little memory."""
    steering()
    program = (
        "import sys\n"
        "from zgate_bpf import loader\n"
        f"loader.compile_program('steering', {STEERING!r}, {{'ZG_WORKERS': 2}}, maps={MAPS!r},"
        f" constants={SECRETS!r}, assertions='')\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'bcc']\n"
        "assert 'LLVM' not in maps and 'libbcc' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
