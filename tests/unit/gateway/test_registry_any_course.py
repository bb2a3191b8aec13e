"""Whatever sessions do in whatever order, and whatever fails: the kernel has those that are up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from zgate_gateway import registry as registry_module
from zgate_gateway.admission import Refusal
from zgate_gateway.registry import SessionRecord

from .test_registry import World, applicant

Step = tuple[str, int, int]

#: What happens, to which client or session, and on which worker, or with which rights.
steps = st.lists(
    st.tuples(
        st.sampled_from(["admit"] * 3 + ["established"] * 3 + ["close", "ended", "lost", "wait"]),
        st.integers(0, 3),
        st.integers(0, 1),
    ),
    min_size=3,
    max_size=25,
)


class Course:
    """A registry, and the sessions that it has granted."""

    def __init__(self) -> None:
        self.world = World()
        self.granted: list[SessionRecord] = []

    def admit(self, client: int, worker: int) -> None:
        """Of four, there are two: the others come with other rights."""
        asking = applicant("ab"[client % 2])
        identity = replace(asking.identity, groups=(str(client // 2),))
        try:
            session = self.world.registry.admit(
                replace(asking, identity=identity), self.world.workers[worker]
            )
        except Refusal:
            return
        self.granted.append(session)

    async def take(self, step: Step) -> None:
        what, which, worker = step
        registry = self.world.registry
        there = [one for one in self.granted if not one.closed]
        if what == "admit":
            self.admit(which, worker)
        elif what == "lost":
            registry.worker_lost(self.world.workers[worker], "its process has ended")
        elif what == "wait":
            await asyncio.sleep(0.001)
        elif there:
            session = there[which % len(there)]
            if what == "established":
                registry.established(session.session_id, session.worker)
            elif what == "ended":
                registry.ended(session.session_id, session.worker, "gone")
            else:
                registry.close(session, "kicked")

    def assert_all_agree(self) -> None:
        world, registry = self.world, self.world.registry
        up = registry.by_client
        assert world.kernel.clients == {name: one.addresses for name, one in up.items()}
        assert registry.by_address == {a: one for one in up.values() for a in one.addresses}
        assert world.steering.owners == {
            address.packed: one.worker.index for one in up.values() for address in one.addresses
        }
        assert all(one.is_up for one in up.values())
        assert not any(one.closed for one in registry.by_id.values())
        for pool in world.pools:
            assert sorted(pool.held) == sorted(one.client for one in registry.by_id.values())


async def run(course: Sequence[Step]) -> None:
    made = Course()
    for step in course:
        await made.take(step)
        made.assert_all_agree()
    for session in list(made.world.registry.by_id.values()):
        made.world.registry.close(session, "the end")
    made.world.assert_holds_nothing()


@given(steps)
@example(
    [("admit", 0, 0), ("admit", 0, 1), ("close", 0, 0), ("admit", 2, 0), ("established", 0, 0)]
)
@settings(deadline=None, max_examples=150)
def test_the_kernel_has_the_sessions_that_are_up(course: list[Step]) -> None:
    grace_s = registry_module.GRACE_S
    registry_module.GRACE_S = 0.0
    try:
        asyncio.run(run(course))
    finally:
        registry_module.GRACE_S = grace_s
