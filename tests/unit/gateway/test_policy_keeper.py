"""Every way in which a policy comes into force, and what is left when it does not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zgate_config import ConfigError
from zgate_control.store import Memory, Store, StoreError
from zgate_gateway.audit import AuditLog
from zgate_gateway.kernel import KernelError
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy_file import PolicyFileError, StagedFile
from zgate_gateway.policy_keeper import (
    NOT_CHANGED,
    PolicyKeeper,
    PolicyMoved,
    PolicyNotWritten,
    UnknownRevision,
)
from zgate_gateway.services.directory import ServiceDirectory


def policy(port: int, test: str = "") -> str:
    rule = f"{{id: r, type: ip_cidr, action: allow, destinations: [10.0.0.1], ports: [{port}]}}"
    return f'version: "1.0"\nclients: {{a: {{rules: [{rule}]}}}}\n{test}'


FAILING = "tests: [{client: a, destination: 10.0.0.9, protocol: tcp, port: 1, expect: allow}]\n"


class FakeKernel:
    """A kernel that takes what it is given, unless ``fails`` is set."""

    def __init__(self) -> None:
        self.revision = 0
        self.policy_set = PolicySet.empty()
        self.fails: str | None = None
        self.build_fails: str | None = None
        self.behind: str | None = None
        self.builds = 0
        self.adopted = 0

    def is_behind(self) -> str | None:
        return self.behind

    def snapshot(self) -> tuple[()]:
        return ()

    def build(self, policy_set: PolicySet, revision: int, _: object) -> tuple[PolicySet, int]:
        assert threading.current_thread() is not threading.main_thread()
        self.builds += 1
        if self.build_fails is not None:
            raise KernelError(self.build_fails)
        return policy_set, revision

    def put_in_force(self, built: tuple[PolicySet, int]) -> None:
        if self.fails is not None:
            raise KernelError(self.fails)
        self.policy_set, self.revision = built
        self.behind = None

    def adopt(self, policy_set: PolicySet) -> bool:
        if not policy_set.means_as(self.policy_set):
            return False
        self.adopted += 1
        self.policy_set = policy_set
        return True

    def load_policy(self, policy_set: PolicySet, revision: int) -> None:
        self.put_in_force((policy_set, revision))


class World:
    """A keeper, and everything around it."""

    def __init__(self, folder: Path, *, with_file: bool = True) -> None:
        self.folder = folder
        self.file = folder / "etc-policy.yaml" if with_file else folder / "policy.yaml"
        self.kernel = FakeKernel()
        if with_file:
            self.file.write_text(policy(1))
        self.start(with_file)

    def start(self, with_file: bool = True) -> None:
        self.store = Store(self.folder / "zgate.db")
        self.audit = AuditLog(self.folder / "audit.jsonl")
        self.keeper = PolicyKeeper(
            policy_file=self.file if with_file else None, state_dir=self.folder
        )
        self.directory = ServiceDirectory(
            self.store, IPv4Network("10.101.0.0/24"), IPv6Network("fd7a:7a67:6174:66::/64")
        )
        self.directory.on_change = self.keeper.services_changed
        self.keeper.start(
            store=self.store,
            kernel=self.kernel,  # type: ignore[arg-type]
            audit=self.audit,
            services=self.directory,
        )

    def stop(self) -> None:
        self.audit.close()
        self.store.close()

    def audited(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "audit.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def history(self) -> list[tuple[int, str]]:
        return [(one.revision, one.origin) for one, _ in self.keeper.history(100)]

    def in_force(self) -> str:
        """The text in force, having checked that kernel, keeper and file agree on it."""
        text = self.keeper.text_of(self.kernel.revision).decode()
        assert self.keeper.policy_set is self.kernel.policy_set
        assert PolicySet.parse(text).sha256 == self.kernel.policy_set.sha256
        return text


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.stop()


async def test_start_reload_apply_rollback_each_leave_a_revision(world: World) -> None:
    assert world.history() == [(1, "start")]
    world.file.write_text(policy(2))
    assert await world.keeper.reload()
    assert await world.keeper.apply(policy(3).encode())
    assert world.in_force() == world.file.read_text() == policy(3)
    assert await world.keeper.rollback(1)
    assert world.in_force() == world.file.read_text() == policy(1)
    assert world.history() == [(4, "rollback"), (3, "apply"), (2, "reload"), (1, "start")]
    assert [record["revision"] for record in world.audited("policy_loaded")] == [1, 2, 3, 4]


async def test_a_restart_finds_what_was_applied(world: World) -> None:
    await world.keeper.apply(policy(5).encode())
    world.stop()
    world.start()
    assert world.in_force() == policy(5)
    assert world.kernel.revision == 2


async def test_without_a_policy_file_what_is_applied_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path, with_file=False)
    assert world.kernel.policy_set.sha256 is None and world.keeper.error is None
    assert not await world.keeper.reload()
    assert await world.keeper.apply(policy(7).encode())
    world.stop()
    world.start(with_file=False)
    assert world.in_force() == policy(7)
    with pytest.raises(UnknownRevision, match="revision 1 is not kept"):
        await world.keeper.rollback(1)
    world.stop()


async def test_the_same_again_is_no_change(world: World) -> None:
    assert not await world.keeper.reload()
    assert not await world.keeper.apply(policy(1).encode())
    assert not await world.keeper.rollback(1)
    assert world.history() == [(1, "start")]


@pytest.mark.parametrize("text", ["{", policy(1, "nonsense: 1\n"), policy(2, FAILING)])
async def test_a_bad_file_keeps_the_old_policy_and_says_why(world: World, text: str) -> None:
    world.file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        await world.keeper.reload()
    assert world.in_force() == policy(1)
    assert world.keeper.error == str(caught.value)
    assert world.keeper.loads["refused"] == 1
    (record,) = world.audited("policy_refused")
    assert (record["text"], record["revision"]) == (world.keeper.error, 1)
    # What was in force all the time comes back: nothing to load, and nothing is wrong any more.
    world.file.write_text(policy(1))
    assert not await world.keeper.reload()
    assert world.keeper.error is None


@pytest.mark.parametrize("text", ["{", policy(2, FAILING)])
async def test_a_bad_text_changes_nothing(world: World, text: str) -> None:
    with pytest.raises(ConfigError):
        await world.keeper.apply(text.encode())
    assert world.in_force() == world.file.read_text() == policy(1)
    assert world.history() == [(1, "start")]
    assert world.keeper.error is None  # the file is what is in force
    assert world.keeper.loads["refused"] == 1


@pytest.mark.parametrize("step", ["fails", "build_fails"])
@pytest.mark.parametrize("change", ["apply", "rollback", "reload"])
async def test_a_kernel_that_refuses_leaves_file_and_history(
    world: World, change: str, step: str
) -> None:
    await world.keeper.apply(policy(2).encode())
    setattr(world.kernel, step, "services: 9 needed, 8 fit")
    with pytest.raises(KernelError):
        match change:
            case "apply":
                await world.keeper.apply(policy(3).encode())
            case "rollback":
                await world.keeper.rollback(1)
            case _:
                world.file.write_text(policy(3))
                await world.keeper.reload()
    setattr(world.kernel, step, None)
    assert world.in_force() == policy(2)
    assert world.history() == [(2, "apply"), (1, "start")]
    if change != "reload":
        assert world.file.read_text() == policy(2)
    assert sorted(path.name for path in world.folder.glob(".etc*")) == []
    await world.keeper.apply(policy(4).encode())
    assert world.kernel.revision == 4  # 3 is not used again


async def test_a_file_that_cannot_be_written_refuses_before_anything_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("zgate_gateway.policy_file._write_beside", refuse)
    with pytest.raises(PolicyFileError, match=r"cannot be written \(Read-only"):
        await world.keeper.apply(policy(2).encode())
    assert world.in_force() == policy(1)


async def test_a_file_that_cannot_be_replaced_in_the_end_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: StagedFile) -> None:
        raise PolicyFileError("gone")

    monkeypatch.setattr(StagedFile, "commit", refuse)
    with pytest.raises(PolicyNotWritten, match="revision 2 is in force, but"):
        await world.keeper.apply(policy(2).encode())
    assert world.kernel.revision == 2
    assert world.keeper.error is not None and world.file.read_text() == policy(1)


async def test_an_edit_that_was_never_in_force_is_kept_aside(world: World) -> None:
    world.file.write_text("# an hour's work\n{")
    await world.keeper.apply(policy(2).encode())
    aside = world.folder / "etc-policy.yaml.replaced"
    assert aside.read_text() == "# an hour's work\n{"
    assert world.file.read_text() == policy(2)
    aside.unlink()
    await world.keeper.apply(policy(3).encode())
    assert not aside.exists()  # what was in force is in the history


async def test_who_compared_with_another_revision_is_stopped(world: World) -> None:
    await world.keeper.apply(policy(2).encode(), expected=1)
    with pytest.raises(PolicyMoved, match="revision 2 is in force, and not 1"):
        await world.keeper.apply(policy(3).encode(), expected=1)
    with pytest.raises(PolicyMoved):
        await world.keeper.rollback(1, expected=1)
    assert world.in_force() == policy(2)


async def test_unknown_revisions(world: World) -> None:
    with pytest.raises(UnknownRevision, match="no policy revision 9"):
        await world.keeper.rollback(9)


async def test_changes_at_the_same_time_come_one_after_the_other(world: World) -> None:
    texts = [policy(port).encode() for port in range(2, 8)]
    await asyncio.gather(*(world.keeper.apply(text) for text in texts))
    assert len(world.history()) == 7
    assert world.in_force() == world.file.read_text()


async def test_close_waits_for_a_change_that_was_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread writes to the kernel: nothing of the kernel's may be closed before."""
    building, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def build(*_: object) -> None:
        building.set()
        may_end.wait(20)
        ended.set()

    monkeypatch.setattr(world.kernel, "build", build)
    change = asyncio.create_task(world.keeper.apply(policy(2).encode()))
    await asyncio.to_thread(building.wait, 20)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    closing = asyncio.create_task(world.keeper.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    may_end.set()
    await closing
    assert ended.is_set() and world.kernel.revision == 1
    assert world.history() == [(1, "start")]


async def test_a_changed_file_is_loaded_by_itself(world: World) -> None:
    watching = asyncio.create_task(world.keeper.watch())
    try:
        world.file.write_text(policy(2))
        async with asyncio.timeout(20):
            while world.kernel.revision != 2:
                await asyncio.sleep(0.02)
            world.file.write_text(policy(3, FAILING))
            while world.keeper.error is None:
                await asyncio.sleep(0.02)
        assert world.in_force() == policy(2)
        assert "test failed" in world.keeper.error
        assert world.keeper.loads["refused"] == 1
    finally:
        watching.cancel()


async def test_what_somebody_reloaded_already_is_not_reloaded_again(world: World) -> None:
    world.file.write_text("{")
    with pytest.raises(ConfigError):
        await world.keeper.reload()
    await world.keeper._file_changed()
    assert world.keeper.loads["refused"] == 1
    world.file.write_text("{{")
    await world.keeper._file_changed()
    assert world.keeper.loads["refused"] == 2


# Time.


async def test_time_builds_the_revision_in_force_anew(world: World) -> None:
    assert not await world.keeper.refresh()
    world.kernel.behind = "the wall clock was set"
    assert await world.keeper.refresh()
    assert (world.kernel.builds, world.kernel.revision) == (1, 1)
    assert world.history() == [(1, "start")]
    assert len(world.audited("policy_loaded")) == 1
    assert world.in_force() == policy(1)


async def test_a_change_that_comes_first_keeps_to_the_time_as_well(world: World) -> None:
    world.kernel.behind = "the wall clock was set"
    changing = asyncio.create_task(world.keeper.apply(policy(2).encode()))
    await asyncio.sleep(0)  # it has the lock
    assert not await world.keeper.refresh()
    assert await changing
    assert (world.kernel.builds, world.kernel.revision) == (1, 2)


async def test_a_refresh_that_fails_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zgate_gateway.policy_keeper._RETRY_S", 0.01)
    monkeypatch.setattr("zgate_gateway.policy_keeper._CLOCK_INTERVAL_S", 0.01)
    world.kernel.behind, world.kernel.build_fails = "the wall clock was set", "no memory"
    watching = asyncio.create_task(world.keeper.watch())
    try:
        async with asyncio.timeout(20):
            while world.kernel.builds < 2:
                await asyncio.sleep(0.01)
            world.kernel.build_fails = None
            while world.kernel.behind is not None:
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
    assert "the times in the policy are not kept to: no memory" in caplog.text
    assert world.in_force() == policy(1)


async def test_a_part_of_the_watch_that_fails_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs it begins it anew: the times in a policy must not stand still unseen."""

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(world.kernel, "is_behind", fail)
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(world.keeper.watch(), 20)
    monkeypatch.undo()
    world.kernel.behind = "the wall clock was set"
    watching = asyncio.create_task(world.keeper.watch())
    async with asyncio.timeout(20):
        while world.kernel.behind is not None:
            await asyncio.sleep(0.01)
    watching.cancel()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.integers(1, 4)),
        st.tuples(st.just("edit"), st.integers(1, 4)),
        st.tuples(st.just("rollback"), st.integers(1, 8)),
        st.tuples(st.just("bad apply"), st.integers(1, 4)),
        st.tuples(st.just("bad edit"), st.integers(1, 4)),
        st.tuples(st.just("kernel fails"), st.integers(1, 4)),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_any_order_of_changes_keeps_the_history_true(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, int]]
) -> None:
    asyncio.run(run_steps(World(tmp_path_factory.mktemp("keeper")), made))


async def run_steps(world: World, made: list[tuple[str, int]]) -> None:
    texts = {1: policy(1)}  # by revision
    for what, number in made:
        expected = texts[max(texts)]
        try:
            match what:
                case "apply":
                    expected = policy(number)
                    await world.keeper.apply(expected.encode())
                case "edit":
                    expected = policy(number)
                    world.file.write_text(expected)
                    await world.keeper.reload()
                case "rollback":
                    known = texts.get(number)
                    await world.keeper.rollback(number)
                    assert known is not None
                    expected = known
                case "kernel fails":
                    world.kernel.fails = "full"
                    await world.keeper.apply(policy(number).encode())
                case "bad apply":
                    await world.keeper.apply(policy(number, FAILING).encode())
                case _:
                    world.file.write_text(policy(number, FAILING))
                    await world.keeper.reload()
        except (*NOT_CHANGED, UnknownRevision):
            pass
        world.kernel.fails = None
        texts.setdefault(world.kernel.revision, expected)
        assert world.in_force() == expected
        for revision, text in texts.items():
            assert world.keeper.text_of(revision).decode() == text
        assert [revision for revision, _ in world.history()] == sorted(texts, reverse=True)
    world.stop()


async def test_a_store_that_fails_keeps_the_old_policy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.store, "record_policy", refuse)
    with pytest.raises(StoreError):
        await world.keeper.apply(policy(2).encode())
    assert world.in_force() == world.file.read_text() == policy(1)


# Services.


def naming(*names: str) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    rule = f"{{id: s, type: service, action: allow, services: [{quoted}], ports: [104]}}"
    return f'version: "1.0"\nclients: {{a: {{rules: [{rule}]}}}}\n'


def allowed(world: World) -> set[str]:
    """The destinations of the rules in force."""
    return {
        str(one) for rule in world.kernel.policy_set.rules_for("a") for one in rule.destinations
    }


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def watched(world: World) -> AsyncIterator[World]:
    """A world whose keeper keeps up with what changes."""
    watching = asyncio.create_task(world.keeper.watch())
    await asyncio.sleep(0)
    yield world
    watching.cancel()
    await world.keeper.close()


async def test_services_that_a_policy_names_have_addresses_when_it_comes(world: World) -> None:
    assert await world.keeper.apply(naming("pacs", "echo-*", "wiki").encode())
    assert world.directory.names() == ("pacs", "wiki")  # a pattern gives nobody an address
    pacs, wiki = (world.directory.addresses_of(name) for name in ("pacs", "wiki"))
    assert pacs is not None and wiki is not None
    assert allowed(world) == {f"{one}/{one.max_prefixlen}" for one in (*pacs, *wiki)}
    assert world.keeper.policy_set is world.kernel.policy_set
    world.stop()
    world.start()  # and the same ones at the next start
    assert world.directory.addresses_of("pacs") == pacs
    assert allowed(world) == {f"{one}/{one.max_prefixlen}" for one in (*pacs, *wiki)}


async def test_a_service_that_turns_up_comes_under_the_rules_by_itself(watched: World) -> None:
    await watched.keeper.apply(naming("echo-*").encode())
    revision, builds = watched.kernel.revision, watched.kernel.builds
    assert allowed(watched) == set()
    for number in range(20):  # many at once are one change
        watched.directory.ensure(f"echo-{number}")
    await until(lambda: len(allowed(watched)) == 40)
    assert watched.kernel.revision == revision and watched.history()[0] == (revision, "apply")
    assert watched.kernel.builds == builds + 1
    assert watched.keeper.policy_set is watched.kernel.policy_set


async def test_from_another_thread_as_well(watched: World) -> None:
    await watched.keeper.apply(naming("echo-*").encode())
    await asyncio.to_thread(watched.directory.ensure, "echo-1")
    await until(lambda: len(allowed(watched)) == 2)


async def test_a_service_that_no_rule_means_builds_nothing(watched: World) -> None:
    await watched.keeper.apply(naming("pacs").encode())
    builds = watched.kernel.builds
    watched.directory.ensure("wiki")
    await until(lambda: "wiki" in watched.kernel.policy_set.services)
    assert (watched.kernel.builds, watched.kernel.adopted >= 1) == (builds, True)
    assert watched.keeper.policy_set is watched.kernel.policy_set
    assert not await watched.keeper.rebind()


async def test_a_kernel_that_refuses_keeps_what_is_in_force(
    watched: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zgate_gateway.policy_keeper._RETRY_S", 0.05)
    await watched.keeper.apply(naming("echo-*").encode())
    before = watched.kernel.policy_set
    watched.kernel.build_fails = "no room"
    watched.directory.ensure("echo-1")
    await until(lambda: "under no rule yet: no room" in caplog.text)
    assert watched.kernel.policy_set is before is watched.keeper.policy_set
    watched.kernel.build_fails = None
    await until(lambda: len(allowed(watched)) == 2)  # tried again


async def test_a_policy_whose_services_have_no_room_is_refused(world: World) -> None:
    many = naming(*(f"s{number}" for number in range(200)))  # the pool has 127
    before = world.in_force()
    with pytest.raises(ConfigError, match="a service that it names can have no address"):
        await world.keeper.apply(many.encode())
    assert world.in_force() == before and world.keeper.loads["refused"] == 1


async def test_a_change_while_services_change_loses_neither(watched: World) -> None:
    await watched.keeper.apply(naming("echo-*").encode())
    await asyncio.gather(
        watched.keeper.apply(naming("echo-*", "pacs").encode()),
        asyncio.to_thread(watched.directory.ensure, "echo-1"),
        asyncio.to_thread(watched.directory.ensure, "echo-2"),
    )
    await until(lambda: len(allowed(watched)) == 6)
    assert watched.in_force() == naming("echo-*", "pacs")


async def test_findings_know_the_services(world: World) -> None:
    await world.keeper.apply(naming("echo-*").encode())
    assert [one.is_note for one in world.keeper.findings] == [True]
    world.directory.ensure("echo-1")
    await world.keeper.apply((naming("echo-*") + "\n").encode())
    assert world.keeper.findings == ()


# A store that is lost, and a file that is gone.


def refuse(*_: object, **__: object) -> None:
    raise StoreError("zgate.db", "the disk is full", "free some space")


async def test_the_file_comes_into_force_while_the_store_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lost:
        lost.setattr(world.store, "record_policy", refuse)
        lost.setattr(world.store, "remember", refuse)
        for number in (2, 3):
            world.file.write_text(policy(number))
            assert await world.keeper.reload()
        world.kernel.fails = "no memory"
        world.file.write_text(policy(4))
        with pytest.raises(KernelError):
            await world.keeper.reload()
    world.kernel.fails = None
    assert world.kernel.revision == 3 and [one for one, _ in world.history()] == [1]
    missing = world.keeper.remembered()
    world.store.remember(Memory(policies=missing), datetime.now(UTC))
    world.keeper.written(revision for revision, _ in missing)
    assert world.history() == [(3, "reload"), (2, "reload"), (1, "start")]
    assert world.in_force() == policy(3)
    assert [revision.revision for revision, _ in world.keeper.remembered()] == [3]


async def test_no_number_is_used_twice_when_the_store_was_mended_without_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changed while the store was being mended: what was written did not have that."""

    with monkeypatch.context() as lost:
        lost.setattr(world.store, "record_policy", refuse)
        lost.setattr(world.store, "remember", refuse)
        world.file.write_text(policy(2))
        assert await world.keeper.reload()
    await world.keeper.apply(policy(3).encode())
    assert world.kernel.revision == 3
    assert world.history() == [(3, "apply"), (2, "reload"), (1, "start")]
    assert [revision.revision for revision, _ in world.keeper.remembered()] == [3]


@pytest.mark.parametrize("with_file", [True, False], ids=["etc", "state"])
async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path, with_file: bool) -> None:
    world = World(tmp_path, with_file=with_file)
    if not with_file:
        await world.keeper.apply(policy(1).encode())
    revision = world.kernel.revision
    world.file.unlink()
    with pytest.raises(ConfigError):
        await world.keeper.reload()
    assert world.kernel.revision == revision and world.keeper.error is not None
    world.file.write_text(policy(1))
    assert not await world.keeper.reload()
    assert world.keeper.error is None and world.in_force() == policy(1)
    world.stop()
