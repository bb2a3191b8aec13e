"""The policy in force, and every way in which another one comes into force.

    start      the file is read before anything of the kernel's is touched, loaded with the kernel
    reload     SIGHUP, ``zgatectl policy reload``, and a file that changed: one function
    apply      a text from an administrator; it becomes the file's content
    rollback   the text of an earlier revision, under a new number

Rules that hold for a time begin and end in the kernel by themselves, under the revision in force.
Only when the wall clock is set, or more times lie ahead than the kernel holds, is the revision
built anew (:meth:`PolicyKeeper.refresh`).

Rules about services are bound to the virtual IPs that the gateway's directory has for them. A
service that a policy names gets its own before the policy comes into force; when a name turns up
that changes what rules mean, the revision is built anew as well (:meth:`PolicyKeeper.rebind`).

A change is read, tested, compiled and built beside what is in force in a thread; the event loop
only swaps it in. Whatever fails on the way leaves everything as it was: kernel, file and history.

**Whose is the file?** The file is what the next start reads. ``apply`` and ``rollback`` therefore
write it, by one rename, in the moment in which the kernel has the new policy. A gateway without a
``policy_file`` keeps what is applied in its state directory. A file that is gone changes nothing
while the gateway runs; without a ``policy_file`` its next start denies everything. An edit of the
file that was never in force (it was refused, or comes too late) is kept beside it under
``NAME.replaced``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

from zgate_config import ConfigError, Mistake, read_bytes
from zgate_control.store import Memory, PolicyRevision, Store, StoreError
from zgate_identity.files import FileVersion, version_of

from zgate_gateway.audit import AuditLog
from zgate_gateway.file_watch import watch_file
from zgate_gateway.kernel import Kernel, KernelError
from zgate_gateway.policy.check import Finding, check_policy
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.policy.service_names import DEFAULT_POOLS, ServicePools, Services
from zgate_gateway.policy_file import PolicyFileError, StagedFile, keep_aside
from zgate_gateway.services.directory import NoServiceAddress, TooManyServices

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

#: How often the clocks are compared: what the policy says of times is to be true within a second.
_CLOCK_INTERVAL_S = 0.25
_RETRY_S = 5.0
#: Names that turn up within so long are one change of what is in force.
_GATHER_S = 0.05

APPLIED_FILE_NAME = "policy.yaml"
NOT_CHANGED = (ConfigError, KernelError, StoreError, PolicyFileError)
"""What a change may raise; what was in force stays in force."""


class PolicyMoved(Exception):
    """The revision in force is not the one that the administrator compared with."""


class PolicyNotWritten(Exception):
    """The policy is in force, and its file could not be replaced."""


class UnknownRevision(Exception):
    """No such revision, or its text is not kept."""


class ServiceNames(Protocol):
    """Who gives services their virtual IPs, from any thread: `ServiceDirectory`."""

    def ensure_all(self, names: Iterable[str]) -> None:
        """Give each of these addresses, if it has none."""

    def snapshot(self) -> Services:
        """All services that are known, with their addresses."""


class _NoServices:
    """A gateway without services."""

    def ensure_all(self, names: Iterable[str]) -> None:
        """See `ServiceNames`."""

    def snapshot(self) -> Services:
        """See `ServiceNames`."""
        return {}


class _Fields(TypedDict):
    """What is recorded of a revision, but for its number, its time and its text."""

    sha256: str
    source: str
    clients: int
    groups: int
    rules: int
    origin: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A policy that has been read, tested and compiled."""

    policy_set: PolicySet
    data: bytes | None
    findings: tuple[Finding, ...]


class PolicyKeeper:
    """Reads, loads, replaces and remembers the policy of one gateway.

    :ivar path: the file that the next start reads.
    :ivar policy_set: what is in force.
    :ivar error: why what the file says now is not in force; None if it is.
    :ivar loads: changes, by what became of them: ``loaded``, ``unchanged``, ``refused``.
    :ivar findings: what is odd in the policy in force.
    """

    def __init__(
        self, *, policy_file: Path | None, state_dir: Path, pools: ServicePools = DEFAULT_POOLS
    ) -> None:
        """Read the file; ``pools``: where services have their virtual IPs.

        Raises :class:`zgate_config.ConfigError`.
        """
        self.path = policy_file or state_dir / APPLIED_FILE_NAME
        self._may_be_missing = policy_file is None
        self.error: str | None = None
        self.loads: Counter[str] = Counter()
        self.loaded_at = datetime.now(UTC)
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "policy")
        self._read_as: FileVersion = None
        self._pools = pools
        self._services: ServiceNames = _NoServices()
        self._services_moved = asyncio.Event()
        self._recorded: tuple[PolicyRevision, bytes | None] | None = None
        self._not_in_store: list[tuple[PolicyRevision, bytes | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.policy_set = PolicySet.empty()
        self.findings: tuple[Finding, ...] = ()
        self._first = self._read_file()

    def start(
        self,
        *,
        store: Store,
        kernel: Kernel,
        audit: AuditLog,
        services: ServiceNames | None = None,
    ) -> None:
        """Load what was read. Raises ConfigError, KernelError, StoreError."""
        self._store, self._kernel, self._audit = store, kernel, audit
        # Asked for None: a directory that has no services yet is empty, and false.
        self._services = _NoServices() if services is None else services
        first = self._bound(self._first)
        recorded = self._record(first, "start")
        kernel.load_policy(first.policy_set, recorded.revision)
        self.loads["loaded"] += 1
        self._now_in_force(first, recorded)

    # Ways of change.

    async def reload(self) -> bool:
        """Load the file again; whether that changed anything. Raises one of NOT_CHANGED."""
        return await self._change("reload", self._read_file, is_the_file=True)

    async def reload_and_log(self) -> None:
        """As :meth:`reload`, where nobody waits for the answer: SIGHUP and a changed file."""
        try:
            changed = await self.reload()
        except NOT_CHANGED as error:
            logger.error(
                "policy not loaded, revision %(revision)d stays: %(error)s",
                {"event": "policy_refused", "revision": self._kernel.revision, "error": error},
            )
            return
        if changed:
            logger.info(
                "policy revision %(revision)d is in force",
                {"event": "policy_loaded", "revision": self._kernel.revision},
            )

    async def watch(self) -> None:
        """Reload whenever the file changes, and keep to the time; forever."""
        self._loop = asyncio.get_running_loop()
        self._services_moved.set()  # they may have, before anybody watched
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_time())
            tasks.create_task(self._keep_services())
            await watch_file(self.path, self._file_changed, seen=self._read_as)

    async def _file_changed(self) -> None:
        if version_of(self.path) != self._read_as:  # else somebody has reloaded already
            await self.reload_and_log()

    async def _keep_time(self) -> None:
        while True:
            try:
                await self.refresh()
            except KernelError as error:
                # What the kernel has goes on, and errs on the safe side where it ends.
                logger.error(
                    "the times in the policy are not kept to: %(error)s",
                    {"event": "policy_times_not_kept", "error": error},
                )
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(_CLOCK_INTERVAL_S)

    async def refresh(self) -> bool:
        """Build the revision in force anew if time asks for it; whether it did.

        Raises KernelError.
        """
        if self._kernel.is_behind() is None:
            return False
        async with self._lock:
            kernel = self._kernel
            because = kernel.is_behind()  # a change may have come first
            if because is None:
                return False
            built = await self._in_thread(
                kernel.build, self.policy_set, kernel.revision, kernel.snapshot()
            )
            kernel.put_in_force(built)
        logger.info(
            "policy revision %(revision)d built anew: %(reason)s",
            {"event": "policy_rebuilt", "revision": kernel.revision, "reason": because},
        )
        return True

    def services_changed(self) -> None:
        """The directory has other services: they come into force soon. From any thread."""
        if self._loop is None:
            self._services_moved.set()  # nobody waits for it yet
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the gateway
            self._loop.call_soon_threadsafe(self._services_moved.set)

    async def _keep_services(self) -> None:
        while True:
            await self._services_moved.wait()
            await asyncio.sleep(_GATHER_S)
            self._services_moved.clear()
            try:
                await self.rebind()
            except KernelError as error:
                # What is in force stays: it allows nothing to what it does not know.
                logger.error(
                    "services that are new are under no rule yet: %(error)s",
                    {"event": "policy_services_unruled", "error": error},
                )
                await asyncio.sleep(_RETRY_S)
                self._services_moved.set()

    async def rebind(self) -> bool:
        """Bind the revision in force to the services that there are now; whether that was needed.

        It is built anew if that changes what its rules match. Raises KernelError.
        """
        async with self._lock:
            services = self._services.snapshot()
            if services == self.policy_set.services:
                return False
            kernel = self._kernel
            bound = await self._in_thread(self.policy_set.bound_to, services)
            if not kernel.adopt(bound):
                built = await self._in_thread(
                    kernel.build, bound, kernel.revision, kernel.snapshot()
                )
                kernel.put_in_force(built)
                logger.info(
                    "policy revision %(revision)d built anew: other services",
                    {"event": "policy_services_changed", "revision": kernel.revision},
                )
            self.policy_set = bound
        return True

    async def apply(self, text: bytes, *, expected: int | None = None) -> bool:
        """Put a text in force and into the file; whether that changed anything.

        Raises one of NOT_CHANGED, or PolicyMoved if ``expected`` is not the revision in force.
        """
        return await self._change("apply", lambda: self._read_text(text), expected=expected)

    async def rollback(self, revision: int, *, expected: int | None = None) -> bool:
        """Put the text of an earlier revision in force; as :meth:`apply`, or UnknownRevision."""
        text = await asyncio.to_thread(self.text_of, revision)
        return await self._change("rollback", lambda: self._read_text(text), expected=expected)

    async def close(self) -> None:
        """Wait for what a change that was given up is still writing; then no change any more."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    # The past.

    def history(self, limit: int) -> list[tuple[PolicyRevision, bool]]:
        """Return the newest revisions first, and whether each can be rolled back to."""
        kept = self._store.kept_policy_texts()
        return [(one, one.sha256 in kept) for one in self._store.policies(limit)]

    def text_of(self, revision: int) -> bytes:
        """Return what a revision said. Raises UnknownRevision."""
        found = self._store.policy(revision)
        if found is None:
            raise UnknownRevision(f"there is no policy revision {revision}")
        text = self._store.policy_text(found.sha256)
        if text is None:
            raise UnknownRevision(f"the text of policy revision {revision} is not kept")
        return text

    # One change.

    async def _change(
        self,
        origin: str,
        read: Callable[[], _Candidate],
        *,
        is_the_file: bool = False,
        expected: int | None = None,
    ) -> bool:
        async with self._lock:
            if expected is not None and expected != self._kernel.revision:
                raise PolicyMoved(
                    f"revision {self._kernel.revision} is in force, and not {expected} any more"
                )
            try:
                candidate = await self._in_thread(read)
                if is_the_file:
                    changed = await self._put_in_force(candidate, origin)
                else:
                    changed = await self._put_in_force_and_file(candidate, origin)
            except NOT_CHANGED as error:
                self._refused(error, is_the_file=is_the_file)
                raise
            except PolicyNotWritten as error:
                self.loads["loaded"] += 1
                self.error = str(error)
                raise
            self.error = None
            self.loads["loaded" if changed else "unchanged"] += 1
            return changed

    async def _put_in_force_and_file(self, candidate: _Candidate, origin: str) -> bool:
        assert candidate.data is not None
        with await self._in_thread(self._stage, candidate.data) as staged:
            changed = await self._put_in_force(candidate, origin)
            try:
                staged.commit()
            except PolicyFileError as error:
                raise PolicyNotWritten(
                    f"revision {self._kernel.revision} is in force, but the next start would read "
                    f"the old file: {error}"
                ) from error
        return changed

    def _stage(self, data: bytes) -> StagedFile:
        staged = StagedFile(self.path, data)
        try:
            if self._holds_an_edit(hashlib.sha256(data).hexdigest()):
                aside = keep_aside(self.path)
                logger.warning(
                    "%(path)s was edited and never in force: kept as %(kept_as)s",
                    {"event": "policy_edit_kept", "path": self.path, "kept_as": aside},
                )
        except BaseException:
            staged.__exit__()
            raise
        return staged

    def _holds_an_edit(self, coming_sha256: str) -> bool:
        """Whether the file holds something that would be lost."""
        try:
            found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return False
        return found not in {coming_sha256, *self._store.kept_policy_texts()}

    async def _put_in_force(self, candidate: _Candidate, origin: str) -> bool:
        if candidate.policy_set.sha256 == self.policy_set.sha256:
            return False
        candidate = await self._in_thread(self._bound, candidate)
        recorded = await self._in_thread(self._record, candidate, origin)
        kernel = self._kernel
        try:
            built = await self._in_thread(
                kernel.build, candidate.policy_set, recorded.revision, kernel.snapshot()
            )
            kernel.put_in_force(built)
        except BaseException:  # also when it was given up: the number was never in force
            self._forget(recorded)
            raise
        self._now_in_force(candidate, recorded)
        return True

    def _bound(self, candidate: _Candidate) -> _Candidate:
        """Give the services that it names virtual IPs, and it theirs. Raises ConfigError."""
        policy_set = candidate.policy_set
        try:
            self._services.ensure_all(policy_set.service_names())
        except (NoServiceAddress, TooManyServices) as error:
            text = f"a service that it names can have no address: {error}"
            raise ConfigError([Mistake(str(self.path), None, (), text)]) from error
        return replace(candidate, policy_set=policy_set.bound_to(self._services.snapshot()))

    def _record(self, candidate: _Candidate, origin: str) -> PolicyRevision:
        policy_set = candidate.policy_set
        fields: _Fields = {
            "sha256": policy_set.sha256 or "",
            "source": str(policy_set.source or "built-in deny-all"),
            "clients": policy_set.client_count,
            "groups": policy_set.group_count,
            "rules": policy_set.rule_count,
            "origin": origin,
        }
        now = datetime.now(UTC)
        try:
            if missing := list(self._not_in_store):  # or the store gives their numbers again
                self._store.remember(Memory(policies=missing), now)
                self.written(revision for revision, _ in missing)
            return self._store.record_policy(**fields, now=now, text=candidate.data)
        except StoreError as error:
            # The file can close a hole while the store is lost; its history is written later.
            if origin != "reload":
                raise
            logger.warning(
                "this policy revision is in the history when the store is: %(error)s",
                {"event": "policy_history_waits", "error": error},
            )
            recorded = PolicyRevision(revision=self._kernel.revision + 1, loaded_at=now, **fields)
            self._not_in_store.append((recorded, candidate.data))
            return recorded

    def _forget(self, recorded: PolicyRevision) -> None:
        self._not_in_store = [one for one in self._not_in_store if one[0] is not recorded]
        with contextlib.suppress(StoreError):  # why it was not put in force is to be told
            self._store.forget_policy(recorded.revision)

    def remembered(self) -> list[tuple[PolicyRevision, bytes | None]]:
        """What a store that was lost has to hold: what it missed, and what is in force."""
        in_force = [self._recorded] if self._recorded is not None else []
        known = {one.revision for one, _ in self._not_in_store}
        return [one for one in in_force if one[0].revision not in known] + self._not_in_store

    def written(self, revisions: Iterable[PolicyRevision]) -> None:
        """The store holds these now."""
        done = set(revisions)
        self._not_in_store = [one for one in self._not_in_store if one[0] not in done]

    def _now_in_force(self, candidate: _Candidate, recorded: PolicyRevision) -> None:
        policy_set = candidate.policy_set
        self.policy_set, self.findings = policy_set, candidate.findings
        self._recorded = recorded, candidate.data
        self.loaded_at = datetime.now(UTC)
        self._audit.policy_loaded(
            revision=recorded.revision,
            source=str(policy_set.source) if policy_set.source else None,
            sha256=policy_set.sha256,
            clients=policy_set.client_count,
            groups=policy_set.group_count,
            rules=policy_set.rule_count,
        )

    def _refused(self, error: Exception, *, is_the_file: bool) -> None:
        if is_the_file:
            self.error = str(error)
        self.loads["refused"] += 1
        self._audit.policy_refused(
            source=str(self.path), text=str(error), revision=self._kernel.revision
        )

    def _in_thread(
        self, work: Callable[..., _Answer], *arguments: object
    ) -> asyncio.Future[_Answer]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # Reading. In a thread, but for the first time.

    def _read_file(self) -> _Candidate:
        self._read_as = version_of(self.path)
        if self._may_be_missing and not self.path.exists() and self.policy_set.source is None:
            return _Candidate(PolicySet.empty(), None, ())  # one that was there and is gone is lost
        data = read_bytes(self.path)
        if hashlib.sha256(data).hexdigest() == self.policy_set.sha256:
            return _Candidate(self.policy_set, data, self.findings)
        return self._read_text(data)

    def _read_text(self, data: bytes) -> _Candidate:
        policy_set = PolicySet.parse(data, str(self.path), source=self.path, pools=self._pools)
        findings = check_policy(policy_set, services=self._services.snapshot())
        return _Candidate(policy_set, data, tuple(findings))
