import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_lab.errors import LabError
from zgate_lab.ownership import ProcessIdentity, Run, RunState

identities = st.builds(
    ProcessIdentity,
    pid=st.integers(2, 4_194_304),
    start_ticks=st.integers(0, 1 << 63),
)
states = st.builds(RunState, owner=identities, processes=st.lists(identities).map(tuple))


@given(states)
def test_a_state_file_is_read_as_it_was_written(state: RunState) -> None:
    assert RunState.from_json(state.to_json()) == state


@given(states)
def test_a_state_file_cut_anywhere_is_refused(state: RunState) -> None:
    text = state.to_json()
    for end in range(len(text)):
        with pytest.raises(LabError):
            RunState.from_json(text[:end])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["owner", "processes", "x"]), json_values) | json_values)
def test_any_other_json_is_refused_or_read(document: object) -> None:
    import json

    try:
        RunState.from_json(json.dumps(document))
    except LabError:
        return


@pytest.mark.parametrize("pid", [1, 0, -1])
def test_a_state_file_never_names_init_or_a_process_group(pid: int) -> None:
    with pytest.raises(LabError):
        RunState.from_json(f'{{"owner": [{pid}, 5], "processes": []}}')


def test_this_process_is_alive() -> None:
    me = ProcessIdentity.of_this_process()
    assert me.pid == os.getpid()
    assert me.is_alive()


def test_the_same_pid_with_another_start_is_another_process() -> None:
    me = ProcessIdentity.of_this_process()
    other = ProcessIdentity(me.pid, me.start_ticks + 1)
    assert not other.is_alive()
    other.kill()  # and is not killed: this test goes on


def test_a_killed_process_is_dead_also_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        identity = ProcessIdentity.of(child.pid)
        assert identity.is_alive()
        identity.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.is_alive()
    finally:
        child.kill()
        child.wait()
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(child.pid)
    identity.kill()


def test_processes_are_remembered_from_many_threads_at_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    identities = [ProcessIdentity(1000 + number, number) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run.add_process, identities))
    kept = RunState.from_json((run.directory / "state.json").read_text())
    assert set(kept.processes) == set(identities)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run.forget_process, identities))
    assert RunState.from_json((run.directory / "state.json").read_text()).processes == ()
