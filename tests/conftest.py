"""What every test shares: privileged folders are skipped, and said so, without root."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from zgate_lab.waiting import SLOWNESS

PRIVILEGED_FOLDERS = {"appliance", "bpf", "netns", "e2e", "soak"}
HERE = Path(__file__).parent


# What an example takes is the machine's affair, and how busy it is; a test's time has a limit.
settings.register_profile("zgate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zgate")


def pytest_configure() -> None:
    # A shell that starts us in the background has SIGINT ignored, and so would be every program
    # that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in PRIVILEGED_FOLDERS:
            item.add_marker(pytest.mark.privileged)
        if (limit := item.get_closest_marker("timeout")) and SLOWNESS > 1:
            (limit_s,) = limit.args
            item.add_marker(pytest.mark.timeout(limit_s * SLOWNESS), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Raised here and not marked: so the summary says it in one line, with their number.
    if os.geteuid() != 0 and item.get_closest_marker("privileged"):
        pytest.skip("privileged tests need root")
