"""What takes time and waits for nothing, begun at once: while the gateway's modules are loaded.

    worker processes      load their own modules, and wait to be configured
    the policy programs   come from the cache or the compiler, and go through the kernel's verifier,
                          in a thread: that needs a processor, and not Python's

Neither changes anything for anybody: the programs are attached to nothing, their tables are empty,
and all is gone with this process. What follows is in the order of `zgate_gateway.daemon`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from zgate_gateway.worker.launch import Launched, launch

if TYPE_CHECKING:
    from zgate_bpf.kernel_policy import KernelPolicy

    from zgate_gateway.config import GatewayConfig

logger = logging.getLogger(__name__)


class HeadStart:
    """See the module's text. To be made in the main thread, and closed in any case."""

    def __init__(self, config: GatewayConfig) -> None:
        self._limits = config.limits
        self._launched = _launch(config.worker_count)
        self._programs: KernelPolicy | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._load, name="zgate-programs")
        self._thread.start()

    def _load(self) -> None:
        try:
            from zgate_bpf.kernel_policy import KernelPolicy

            self._programs = KernelPolicy(
                max_clients=self._limits.max_clients, max_flows=self._limits.max_flows
            )
        except BaseException as error:  # whoever asks gets it
            self._failure = error

    def workers(self) -> list[Launched]:
        """The processes, which are the caller's from now on."""
        launched, self._launched = self._launched, []
        return launched

    def programs(self) -> KernelPolicy:
        """The loaded programs, the caller's from now on; waits for them.

        Raises:
            BpfLoadError: they cannot be loaded; the text says what to do.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        programs, self._programs = self._programs, None
        if programs is None:
            raise RuntimeError("the programs have been taken already")
        return programs

    def close(self) -> None:
        """Let go of what nobody has taken."""
        for launched in self.workers():
            launched.discard()
        self._thread.join()
        if self._programs is not None:
            self._programs.close()
            self._programs = None


def _launch(count: int) -> list[Launched]:
    """As many processes as there can be; the crew asks for the others, and is told why not."""
    launched: list[Launched] = []
    try:
        while len(launched) < count:
            launched.append(launch())
    except OSError as error:
        logger.warning(
            "a worker process cannot be started yet: %(error)s",
            {"event": "worker_start_failed", "error": error},
        )
    return launched
