import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import build
from bench.errors import BenchError

ASK = "from zgate_datapath import _native; print(_native.__file__)"


def test_the_null_cipher_is_used_only_where_the_environment_asks(tmp_path: Path) -> None:
    environment = build.build_null_cipher(tmp_path / "null")

    def ask(**more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert ask(**environment) == str(tmp_path / "null" / "_native.so")
    assert str(tmp_path) not in ask()
    built = (tmp_path / "null" / "_native.so").read_bytes()
    switch = build.NULL_CIPHER_SWITCH.encode()
    assert switch in built
    assert switch not in Path(ask()).read_bytes()


def test_own_programs_compile(tmp_path: Path) -> None:
    for program in (build.build_bare(tmp_path), build.build_tun_copy(tmp_path)):
        assert subprocess.run([program], check=False).returncode == 2


def test_the_compilers_words_are_in_the_error(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("int main(void) { return nothing; }")
    with pytest.raises(BenchError, match="nothing"):
        build.compile_c(tmp_path / "bad", [source])


def test_the_aead_alone_can_be_timed(tmp_path: Path) -> None:
    from bench.sections.limits import Aead

    library = Aead(build.build_crypto(tmp_path))
    assert library.choose("openssl")
    assert not library.choose("rot13")
    seal_ns, open_ns = library.measure()
    assert 10 < seal_ns < 1e6
    assert 10 < open_ns < 1e6
