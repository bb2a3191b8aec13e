"""The edge: an XDP program before the UDP port, its life and what is known of it.

It makes junk cheap and decides nothing that matters: where it cannot run, the gateway does without
it and says so. It looks every few seconds whether interface and addresses are still the same.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from zgate_bpf.edge import EdgeProgram, EdgeSettings, Owners, Rate
from zgate_bpf.edge_attach import Attachment, Mode, attach
from zgate_bpf.edge_layouts import EdgeReason
from zgate_bpf.errors import BpfError, CapacityError
from zgate_config import ConfigError
from zgate_identity.files import version_of

from zgate_gateway.config import EdgeConfig
from zgate_gateway.edge_blocklist import Network, merge, read_blocklist
from zgate_gateway.edge_gro import GroSwitch
from zgate_gateway.edge_uplink import IpAddress, Uplink, find_uplink
from zgate_gateway.file_watch import watch_file
from zgate_gateway.net.errors import NetError

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 5.0
#: Enough for every client that asks which versions there are, and nothing beside a handshake.
_VERSION_RATE = Rate(100, 100)


_MODES: dict[str, tuple[Mode, ...]] = {
    "auto": (Mode.NATIVE, Mode.GENERIC),
    "native": (Mode.NATIVE,),
    "generic": (Mode.GENERIC,),
}


class EdgeError(RuntimeError):
    """The edge is asked for (``enabled: on``) and cannot be attached."""


@dataclass(frozen=True, slots=True)
class EdgeState:
    """What is shown of it.

    :ivar mode: ``native``, ``generic`` or ``off``.
    :ivar interface: where it is attached.
    :ivar note: why it is off, or generic.
    :ivar packets: to our port, by what became of them.
    :ivar blocked: networks in the blocklist.
    :ivar blocklist_problem: why the file as it is now is not in force.
    """

    mode: str = "off"
    interface: str | None = None
    note: str | None = None
    packets: Mapping[EdgeReason, int] = field(default_factory=dict)
    blocked: int = 0
    blocklist_problem: str | None = None


class Edge:
    """The edge of one gateway. :meth:`open` once, :meth:`keep` meanwhile, :meth:`close`."""

    def __init__(
        self,
        config: EdgeConfig,
        *,
        listen: IpAddress,
        port: int,
        uplink: str | None = None,
        owners: Owners | None = None,
    ) -> None:
        self._config = config
        self._listen = listen
        self._settings = EdgeSettings(
            port,
            source_rate=Rate(config.initials_per_source_per_s, config.initials_burst),
            total_rate=Rate(config.initials_per_s, config.initials_per_s),
            version_rate=_VERSION_RATE,
            owners=owners,
        )
        self._interface = config.interface or uplink
        # No two living gateways share address and port: this name is ours, or a dead one's.
        self._name = f"zgedge_{zlib.crc32(f'{listen} {port}'.encode()):08x}"
        self._undo = ExitStack()
        self._program: EdgeProgram | None = None
        self._attachment: Attachment | None = None
        self._gro: GroSwitch | None = None
        self._was_attached = False
        self._addresses: frozenset[IpAddress] = frozenset()
        self._note: str | None = None
        self._blocklist: list[Network] = []
        self._blocklist_problem: str | None = None

    # Life.

    def open(self) -> None:
        """Load and attach it, as the configuration says.

        Raises:
            ConfigError: the blocklist cannot be used.
            EdgeError: ``enabled: on``, and it cannot be attached.
        """
        if self._config.enabled == "off":
            self._note = "switched off"
            return
        blocklist = self._read_blocklist()
        try:
            self._program = self._undo.enter_context(EdgeProgram(name=self._name))
            self._program.configure(self._settings)
            self._program.set_blocklist(blocklist)
            self._blocklist = blocklist
            self._follow_uplink()
        except (BpfError, NetError, OSError) as error:
            self._do_without(str(error))
        if self._attachment is None and self._config.enabled == "on":
            raise EdgeError(f"edge: {self._note} (edge.enabled: auto starts without it)")

    def close(self) -> None:
        """Detach it, and give everything back."""
        self._detach()
        self._undo.close()
        self._program = None

    async def keep(self) -> None:
        """Follow interface, addresses and the blocklist's file, for ever."""
        if self._program is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_uplink())
            if self._config.blocklist_file is not None:
                tasks.create_task(self._watch(self._config.blocklist_file))

    async def _watch(self, path: Path) -> None:
        async def reload() -> None:
            self.reload()

        await watch_file(path, reload, seen=version_of(path))

    async def _keep_uplink(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            try:
                self._follow_uplink()
            except (BpfError, NetError, OSError) as error:
                self._do_without(str(error))

    # Where it stands.

    def _follow_uplink(self) -> None:
        assert self._program is not None
        found = find_uplink(self._listen, self._interface)
        if found.addresses != self._addresses:
            self._addresses = found.addresses
            self._tell_addresses(self._program)
        if self._attachment is not None and found.program == self._program.id:
            return
        self._detach()
        if found.interface is None:
            self._do_without(found.problem)
        else:
            self._attach(self._program, found)
            if found.is_veth and self._mode() == "native":
                self._gro = GroSwitch.on(found.interface[0])

    def _tell_addresses(self, program: EdgeProgram) -> None:
        logger.debug(
            "edge: addresses %(addresses)s",
            {"event": "edge_addresses", "addresses": ", ".join(sorted(map(str, self._addresses)))},
        )
        try:
            program.set_addresses(self._addresses)
        except CapacityError as error:
            logger.warning(
                "edge: not before every address of this host: %(error)s",
                {"event": "edge_addresses_left_out", "error": error},
            )

    def _attach(self, program: EdgeProgram, found: Uplink) -> None:
        assert found.interface is not None
        name, index = found.interface
        present = found.program
        self._attachment = attach(
            program.fd,
            name,
            index,
            name=self._name,
            present=present,
            modes=_MODES[self._config.mode],
        )
        self._was_attached = True
        refused = self._attachment.native_refused
        self._note = f"not in the driver: {refused}" if refused else None
        logger.info(
            "edge: XDP on %(interface)s, %(mode)s%(note)s",
            {
                "event": "edge_attached",
                "interface": name,
                "mode": self._mode(),
                "note": f" ({self._note})" if self._note else "",
            },
        )

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None
        if self._gro is not None:
            self._gro.close()
            self._gro = None

    def _do_without(self, why: str) -> None:
        """Say it once, however often it is tried."""
        if why != self._note:
            logger.warning(
                "edge: %(mode)s: %(reason)s",
                {"event": "edge_changed", "mode": self._mode(), "reason": why},
            )
        self._note = why

    # The blocklist.

    def reload(self) -> None:
        """Read the blocklist's file again. A bad one changes nothing, and is told."""
        if self._program is None:
            return
        try:
            fresh = self._read_blocklist()
            if fresh != self._blocklist:
                self._program.set_blocklist(fresh)
                logger.info(
                    "edge: %(networks)d networks blocked",
                    {"event": "blocklist_loaded", "networks": len(fresh)},
                )
            self._blocklist = fresh
            self._blocklist_problem = None
        except (BpfError, ConfigError, OSError) as error:
            self._blocklist_problem = str(error)
            logger.error(
                "edge: blocklist not loaded, the old one stays: %(error)s",
                {"event": "blocklist_refused", "error": error},
            )

    def _read_blocklist(self) -> list[Network]:
        path = self._config.blocklist_file
        return merge(self._config.blocklist, read_blocklist(path) if path is not None else ())

    # What is known of it.

    def _mode(self) -> str:
        if self._attachment is None:
            return "off"
        return (self._attachment.mode.name or "").lower()

    @property
    def problem(self) -> str | None:
        """What an operator should look at; None: it is as configured."""
        if self._blocklist_problem is not None:
            return f"{self._blocklist_problem}; the blocklist before stays in force"
        if self._attachment is None and (self._was_attached or self._config.enabled == "on"):
            return f"no XDP program before the UDP port: {self._note}; it is tried again"
        return None

    def state(self) -> EdgeState:
        """A snapshot."""
        return EdgeState(
            mode=self._mode(),
            interface=self._attachment.interface if self._attachment is not None else None,
            note=self._note,
            packets=self._program.counts() if self._program is not None else {},
            blocked=len(self._blocklist),
            blocklist_problem=self._blocklist_problem,
        )
