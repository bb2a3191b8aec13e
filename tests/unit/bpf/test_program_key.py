"""Whatever a compilation depends on gives it another name."""

import os
import shutil
from dataclasses import replace

import pytest
from zgate_bpf import compiler, program_key
from zgate_bpf.compiler import PROGRAMS, Source

SOURCE = Source("steering", ("zg_steer_udp",), {"ZG_WORKERS": 2}, "/* more */")


def key(source=SOURCE):
    return program_key.program_key(source)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the programs, which a test may change."""
    made = tmp_path / "programs"
    shutil.copytree(PROGRAMS, made)
    monkeypatch.setattr(compiler, "PROGRAMS", made)
    monkeypatch.setattr(program_key, "PROGRAMS", made)
    return made


@pytest.fixture
def headers(tmp_path, monkeypatch):
    """A folder of system headers of our own."""
    made = tmp_path / "include"
    made.mkdir()
    monkeypatch.setattr(program_key, "header_folders", lambda: [made])
    return made


def test_the_same_is_the_same_wherever_it_lies(tree):
    copied = key()
    assert copied == key()
    assert len(copied) == 64
    shutil.move(tree, tree.with_name("elsewhere"))
    with pytest.raises(OSError, match="steering"):
        key()


def test_a_copy_has_the_name_of_the_original(tree):
    copied = key()
    compiler.PROGRAMS = program_key.PROGRAMS = PROGRAMS  # monkeypatch puts them back
    assert key() == copied


@pytest.mark.parametrize(
    "other",
    [
        replace(SOURCE, name="edge"),
        replace(SOURCE, functions=("zg_steer_tun",)),
        replace(SOURCE, defines={"ZG_WORKERS": 3}),
        replace(SOURCE, defines={}),
        replace(SOURCE, more_text="/* more */\n"),
    ],
)
def test_what_is_asked_for_counts(other):
    assert key(other) != key()


@pytest.mark.parametrize("file", [file for file in sorted(PROGRAMS.rglob("*")) if file.is_file()])
def test_every_file_of_the_tree_counts(tree, file):
    before = key()
    changed = tree / file.relative_to(PROGRAMS)
    changed.write_text(changed.read_text() + "\n")
    assert key() != before


def test_a_new_and_a_renamed_file_count(tree):
    before = key()
    (tree / "policy" / "new.h").write_text("")
    added = key()
    (tree / "policy" / "new.h").rename(tree / "policy" / "newer.h")
    assert len({before, added, key()}) == 3


def test_headers_count_as_far_as_they_are_reached(headers):
    source = replace(SOURCE, more_text='#include <outer.h>\n#  include "linux/none.h"\n')
    without = key(source)
    (headers / "outer.h").write_text('#include "deep/inner.h"\n')
    (headers / "deep").mkdir()
    outer = key(source)
    (headers / "deep" / "inner.h").write_text('#include "beside.h"\n#include <outer.h>\n')
    inner = key(source)
    (headers / "deep" / "beside.h").write_text("1")
    beside = key(source)
    (headers / "deep" / "beside.h").write_text("2")
    changed = key(source)
    (headers / "unrelated.h").write_text("")
    assert key(source) == changed
    assert len({without, outer, inner, beside, changed}) == 5


def test_the_real_headers_are_found():
    texts = [(PROGRAMS / "policy" / "parse.h").read_bytes(), b"#include <linux/bpf.h>\n"]
    reached = {str(file) for file in program_key._reached_headers(texts)}
    assert "/usr/include/linux/bpf.h" in reached
    assert "/usr/include/linux/types.h" in reached
    assert any(file.endswith("/asm/types.h") for file in reached)


@pytest.mark.parametrize("asked", ["machine", "release"])
def test_machine_and_kernel_count(monkeypatch, asked):
    before = key()
    monkeypatch.setattr(program_key.platform, asked, lambda: "another")
    assert key() != before


def test_variables_of_the_compiler_count(monkeypatch):
    before = key()
    monkeypatch.setenv("ARCH", "arm64")
    arch = key()
    monkeypatch.setenv("BCC_LINUX_VERSION_CODE", "1")
    assert len({before, arch, key()}) == 3
    monkeypatch.delenv("ARCH")
    monkeypatch.delenv("BCC_LINUX_VERSION_CODE")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    assert key() == before


def test_another_compiler_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(program_key, "_LIBRARY_FOLDERS", (str(tmp_path),))
    names = {key()}
    library = tmp_path / "libLLVM-14.so.1"
    library.write_bytes(b"one")
    names.add(key())
    os.utime(library, (1, 1))
    names.add(key())
    library.write_bytes(b"three")
    os.utime(library, (1, 1))
    names.add(key())
    (tmp_path / "libLLVM.so").symlink_to("removed")
    assert key() in names, "a link that leads nowhere is no compiler"
    monkeypatch.setattr(program_key.importlib.util, "find_spec", lambda _name: None)
    assert len(names | {key()}) == 5
