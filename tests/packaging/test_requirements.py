"""The pinned requirements: what zgate runs with is all of what it needs, and nothing else."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pinned(file: str) -> dict[str, str]:
    """Versions by name, of the lines of one file."""
    lines = (ROOT / file).read_text().splitlines()
    found = (re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def needed() -> set[str]:
    """zgate's requirements, with theirs."""
    seen, todo = set[str](), [Requirement(line) for line in requires("zgate") or []]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        # Neither other systems' nor, without being asked for, extras.
        if name in seen or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        todo += [Requirement(line) for line in requires(name) or []]
    return seen


def test_what_runs_is_pinned_as_a_whole() -> None:
    assert set(pinned("requirements-run.txt")) == needed()


def test_nothing_is_pinned_twice() -> None:
    assert not set(pinned("requirements-run.txt")) & set(pinned("requirements.txt"))


@pytest.mark.parametrize("requirement", [Requirement(line) for line in requires("zgate") or []])
def test_pins_are_versions_that_the_package_takes(requirement: Requirement) -> None:
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pinned("requirements-run.txt")[name])


def test_every_folder_of_tests_is_run_by_something() -> None:
    """`make test` runs the folders that pyproject.toml names, `make test-appliance` the other."""
    text = (ROOT / "pyproject.toml").read_text()
    named = set(re.findall(r'"tests/(\w+)"', text.partition("testpaths = [")[2].partition("]")[0]))
    there = {
        path.parent.relative_to(ROOT / "tests").parts[0]
        for path in ROOT.glob("tests/*/**/test_*.py")
    }
    assert there == named | {"appliance"}
