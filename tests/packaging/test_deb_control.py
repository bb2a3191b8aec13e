"""The Debian package asks for what zgate runs with, as tools/packages-run.txt has it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTROL = (ROOT / "deploy/debian/control").read_text()
# For those who compile the native engine, make an environment, or run the demo.
NOT_TO_RUN = {
    *("gcc", "libc6-dev", "python3-dev", "libssl-dev", "python3-venv"),
    *("curl", "iputils-ping"),
}


def field(name: str) -> dict[str, str]:
    """Packages of a field of the binary package, with what stands behind each name."""
    binary = CONTROL.partition("\nPackage: zgate\n")[2]
    found = re.search(rf"^{name}: (.*(?:\n .*)*)", binary, re.MULTILINE)
    assert found
    entries = (entry.split() for entry in found[1].replace("|", ",").split(","))
    return {words[0]: " ".join(words[1:]) for words in entries if words}


def test_what_runs_is_asked_for() -> None:
    wanted = set[str]()
    for line in (ROOT / "tools/packages-run.txt").read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#") or words[0] in NOT_TO_RUN:
            continue
        if words[1:]:
            assert field("Recommends")[words[0]] == f"[{words[1]}]"
        else:
            wanted.add(words[0])
    assert wanted <= set(field("Depends"))


def test_the_interpreter_is_the_one_that_it_was_built_with() -> None:
    assert re.search(r"python3 \(>= 3\.11\), python3 \(<< 3\.12\)", CONTROL)
    assert "lib/python3.11/" in (ROOT / "deploy/debian/install-venv").read_text()


def test_units_name_programs_that_the_package_has() -> None:
    programs = re.search(r"^PROGRAMS := (.*)$", (ROOT / "deploy/debian/rules").read_text(), re.M)
    assert programs
    started = set[str]()
    for unit in (ROOT / "systemd").glob("*.service"):
        started |= set(re.findall(r"^Exec\w+=/usr/bin/([\w-]+)", unit.read_text(), re.M))
    assert started
    assert started <= set(programs[1].split())
