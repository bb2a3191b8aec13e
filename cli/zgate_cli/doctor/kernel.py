"""What the kernel has to offer."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterator
from importlib.util import find_spec

from zgate_gateway.kernel_probe import probe_bpf

from zgate_cli.answers import Finding
from zgate_cli.doctor.host import Context
from zgate_cli.findings import fail, ok, skip, warn

#: Debian 12's, on which the kernel's part is tested; and the first with all that it uses.
_TESTED, _OLDEST = (6, 1), (5, 15)
#: Since then tables count towards the memory cgroup, not towards RLIMIT_MEMLOCK.
_NO_MEMLOCK = (5, 11)
_MEMLOCK_BYTES = 512 * 1024 * 1024
_JIT = "/proc/sys/net/core/bpf_jit_enable"


def check_kernel(context: Context) -> Iterator[Finding]:
    """Version, BPF, TUN, and the modules of Debian's that talk to them."""
    yield _version()
    yield _bpf(context)
    yield _jit(context)
    yield _btf()
    yield _tun(context)
    yield _modules()
    yield _memlock()


def _release() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _version() -> Finding:
    release, title = platform.release(), "kernel"
    if _release() < _OLDEST:
        return fail(
            "kernel_version", title, f"{release} is too old",
            "install Debian 12 or a kernel of 6.1 or newer", release=release,
        )  # fmt: skip
    if _release() < _TESTED:
        return warn(
            "kernel_version", title, f"{release} is older than what zgate is tested on",
            "install a kernel of 6.1 or newer", release=release,
        )  # fmt: skip
    return ok("kernel_version", title, release, release=release)


def _bpf(context: Context) -> Finding:
    title = "bpf"
    problem = probe_bpf()
    if problem is None:
        return ok("bpf", title, "the kernel takes a map and a program")
    if not context.host.is_root:
        return skip("bpf", title, problem, "run zgatectl doctor as root")
    return fail(
        "bpf", title, problem,
        "use a kernel with CONFIG_BPF_SYSCALL; in a container allow bpf(2), and give CAP_BPF, "
        "CAP_NET_ADMIN and CAP_PERFMON",
    )  # fmt: skip


def _jit(context: Context) -> Finding:
    state = context.host.number(_JIT)
    if state == 0:
        return warn(
            "bpf_jit", "bpf jit", "off: every packet's verdict is interpreted, many times slower",
            "sysctl -w net.core.bpf_jit_enable=1, and put it into /etc/sysctl.d",
        )  # fmt: skip
    text = "on" if state is not None else "always on, or not shown here"
    return ok("bpf_jit", "bpf jit", text)


def _btf() -> Finding:
    if os.path.exists("/sys/kernel/btf/vmlinux"):  # noqa: PTH110
        return ok("btf", "btf", "there is /sys/kernel/btf/vmlinux")
    return warn(
        "btf", "btf", "none: zgate does without, tools such as bpftool and bpftrace do not",
        "nothing, unless somebody has to trace; then a kernel with CONFIG_DEBUG_INFO_BTF",
    )  # fmt: skip


def _tun(context: Context) -> Finding:
    title, path = "tun", "/dev/net/tun"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail("tun", title, f"there is no {path}", "modprobe tun; in a container bind it")
    except PermissionError:
        if not context.host.is_root:
            return skip("tun", title, f"{path} is not for this user", "run it as root")
        return fail("tun", title, f"{path} cannot be opened", "let the container have the device")
    except OSError as error:
        return fail("tun", title, f"{path}: {error.strerror}", "modprobe tun")
    return ok("tun", title, f"{path} opens")


def _modules() -> Finding:
    wanted = {"bcc": "python3-bpfcc", "nftables": "python3-nftables"}
    missing = [package for module, package in wanted.items() if find_spec(module) is None]
    if missing:
        return fail(
            "modules", "Debian's modules", f"not to be found: {', '.join(missing)}",
            f"apt install {' '.join(missing)}; a virtual environment needs --system-site-packages",
        )  # fmt: skip
    return ok("modules", "Debian's modules", "bcc and nftables are there")


def _memlock() -> Finding:
    title = "memlock"
    if _release() >= _NO_MEMLOCK:
        return ok("memlock", title, "of no matter for this kernel")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= _MEMLOCK_BYTES:
        return ok("memlock", title, "enough")
    return fail(
        "memlock", title, f"{soft} bytes: the kernel's tables do not fit",
        "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited", limit_bytes=soft,
    )  # fmt: skip
