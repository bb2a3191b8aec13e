"""Compiling needs no privilege: the kernel is asked only when a program is loaded."""

import errno
import os
import struct
import sys
from pathlib import Path

import pytest
from zgate_bpf import loader
from zgate_bpf.errors import BpfLoadError

OWN_MAPS = [
    "active",
    "clients",
    "flows",
    "fragments",
    "counters",
    "drops",
    "gates",
    "limiters",
    "events",
    "masks",
]
GENERATION_MAPS = ["assignments", "policies", "destinations", "lists", "intervals", "rules"]
SERVICE_MAPS = ["endpoints", "services", "offers", "networks", "scratch"]
MAPS = [*OWN_MAPS, *GENERATION_MAPS, *SERVICE_MAPS, "statistics"]
DEFINES = {
    "ZG_MAX_CLIENTS": 16,
    "ZG_ALLOWED_EVENTS_PER_S": 1,
    "ZG_DENIED_EVENTS_PER_S": 1,
}
DESCRIPTORS = dict.fromkeys(MAPS, 3)
FUNCTIONS = ("zg_ingress", "zg_egress")


@pytest.fixture(autouse=True)
def cold(monkeypatch, tmp_path):
    """No test finds what another has compiled."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))


def compiled(**keywords):
    return loader.compile_program("policy", FUNCTIONS, DEFINES, maps=DESCRIPTORS, **keywords)


def test_compiles_without_kernel_headers(monkeypatch):
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    programs = compiled()
    assert set(programs) == set(FUNCTIONS)
    assert all(len(code) % 8 == 0 and len(code) > 1000 for code in programs.values())


def test_struct_that_differs_does_not_compile(monkeypatch):
    from zgate_bpf import layouts

    wrong = layouts.Layout("zg_flow", (*layouts.FLOW.fields, ("more", "Q")))
    text = layouts.assertions((wrong,))
    with pytest.raises(BpfLoadError, match="struct zg_flow"):
        compiled(extra_text=text)


def test_number_that_differs_does_not_compile():
    with pytest.raises(BpfLoadError, match="ZG_DROP_NO_POLICY"):
        compiled(extra_text='_Static_assert(ZG_DROP_NO_POLICY == 9u, "ZG_DROP_NO_POLICY");')


def test_compiler_error_is_in_the_message(capfd):
    with pytest.raises(BpfLoadError, match=r"policy does not compile:\n.*error: .*'nonsense'"):
        compiled(extra_text="int zg_broken(void) { return nonsense; }")
    assert capfd.readouterr().err == ""


def test_missing_bcc_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "bcc.py").write_text("raise ImportError('no library there')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    with pytest.raises(BpfLoadError, match=r"python3-bpfcc(.*\n)*no library there"):
        compiled()


def test_the_compiler_does_not_stay_in_this_process():
    compiled()
    assert not [name for name in sys.modules if name.split(".")[0] == "bcc"]
    assert "LLVM" not in Path("/proc/self/maps").read_text()


def test_privilege_is_named():
    error = PermissionError(errno.EPERM, "Operation not permitted")
    assert "CAP_BPF" in loader.explain_os_error("BPF maps", error)
    assert "smaller" in loader.explain_os_error("BPF maps", OSError(errno.ENOMEM, "no memory"))
    assert loader.explain_os_error("x", OSError(errno.EIO, "broken")) == "x: broken"


JUMP_CLASSES = (0x05, 0x06)
EXIT, CALL, JUMP_ALWAYS, LOAD_DOUBLE = 0x95, 0x85, 0x05, 0x18


def successors(code):
    """Where each instruction may lead."""
    instructions = [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]
    for at, (operation, _, offset, _) in enumerate(instructions):
        if operation == EXIT:
            yield []
        elif operation == JUMP_ALWAYS:
            yield [at + 1 + offset]
        elif operation & 7 in JUMP_CLASSES and operation != CALL:
            yield [at + 1, at + 1 + offset]
        else:
            yield [at + (2 if operation == LOAD_DOUBLE else 1)]


def has_cycle(follows):
    done, path, stack = set(), set(), [(0, iter(follows[0]))]
    path.add(0)
    while stack:
        at, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            stack.pop()
            path.discard(at)
            done.add(at)
        elif following in path:
            return True
        elif following not in done:
            path.add(following)
            stack.append((following, iter(follows[following])))
    return False


def test_programs_have_no_loops():
    """Kernel 6.1 takes only some shapes of loop, and the compiler chooses the shape."""
    for code in compiled().values():
        assert not has_cycle(list(successors(code)))
    assert has_cycle([[1], [2], [0]])
