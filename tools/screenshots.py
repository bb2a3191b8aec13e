"""Make `docs/images/*.svg`: what people see of a gateway that runs, with clients that use it.

    make screenshots        (root: it makes network namespaces)

A lab of eight devices, one gateway and an office; `zgatectl` on a real pseudo-terminal. What the
terminal shows is drawn, character by character; nothing is made up.
"""

from __future__ import annotations

import contextlib
import io
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from zgate_lab.deployment import BIN, Deployment
from zgate_lab.internet import Host, Internet, Net
from zgate_lab.namespace import command_in
from zgate_lab.screen import Screen
from zgate_lab.stream import TcpStream

FOLDER = Path(__file__).parents[1] / "docs" / "images"
#: A picture in a document asks no server for a font.
SVG_FORMAT = CONSOLE_SVG_FORMAT.replace("Fira Code, monospace", "monospace")
SVG_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", SVG_FORMAT, flags=re.DOTALL)
CLIENTS = (
    "radiology-ws1", "radiology-ws2", "dr.keller", "lab-analyzer", "ward3-tablet", "billing",
    "it-admin", "visitor",
)  # fmt: skip
#: Kilobytes per second that each takes and gives.
LOADS = ((900, 40), (450, 30), (20, 160), (4, 90), (60, 5), (35, 12), (2, 2))
WATCH_S = 25.0
POLICY = """\
version: "1.0"
metadata: {name: screenshots}
default_action: deny
groups:
  staff:
    rules:
      - id: allow-office
        type: ip_cidr
        action: allow
        destinations: [10.20.0.0/24, "fd00:20::/64"]
        protocols: [tcp]
"""


def add_device(internet: Internet, number: int) -> Host:
    """One more device behind the provider."""
    net: Net = (f"198.18.{number}", f"2001:db8:{number}:")
    made = internet._add_host(f"device{number}", internet.isp, net, "eth0", 2)
    internet.add_way_to(net)
    return made


@contextlib.contextmanager
def world() -> Iterator[Deployment]:
    """A gateway with all clients connected, and bytes that flow."""
    with Internet.open() as internet, contextlib.ExitStack() as streams:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({one: ["staff"] if one != "visitor" else [] for one in CLIENTS})
        zgate.start_gateway()
        devices = [internet.device1, internet.device2]
        devices += [add_device(internet, number) for number in range(3, len(CLIENTS) + 1)]
        for name, device in zip(CLIENTS, devices, strict=True):
            zgate.start_agent(name, device)
        for number, loads in enumerate(LOADS):
            for upload, kb_per_s in zip((False, True), loads, strict=True):
                stream = TcpStream(
                    devices[number].namespace.name,
                    internet.office,
                    internet.office.ipv4,
                    6000 + 2 * number + upload,
                    upload=upload,
                    bytes_per_s=kb_per_s * 1000,
                )
                streams.enter_context(stream)
        # Where the visitor may not go.
        internet.device2.namespace.spawn(
            "denied", "ping", "-q", "-i", "0.2", str(internet.forbidden.ipv4)
        )
        devices[-1].namespace.spawn(
            "visitor-denied", "ping", "-q", "-i", "0.1", str(internet.office.ipv4)
        )
        yield zgate


# Pictures.


def draw(screen: Screen, name: str, title: str) -> None:
    """Write what is on a screen as a picture."""
    lines = [line_of(screen, number) for number in range(screen.display.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(
        record=True, width=screen.display.columns, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(
        title=title, theme=MONOKAI, code_format=SVG_FORMAT, unique_id=f"zgate-{name}"
    )
    # Whose kernel it is, is nobody's business: the numbers stay.
    release = platform.release()
    numbers = release.partition("-")[0]
    svg = svg.replace(release, numbers + "\N{NO-BREAK SPACE}" * (len(release) - len(numbers)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.svg").write_text(svg)
    sys.stdout.write(f"{FOLDER / name}.svg\n")


def line_of(screen: Screen, number: int) -> Text:
    """A line of a terminal, with its styles."""
    line, text = screen.display.buffer[number], Text(no_wrap=True)
    for column in range(screen.display.columns):
        cell = line[column]
        words = [
            "bold" if cell.bold else "",
            "reverse" if cell.reverse else "",
            "underline" if cell.underscore else "",
            color(cell.fg),
            f"on {color(cell.bg)}" if color(cell.bg) else "",
        ]
        text.append(cell.data, " ".join(filter(None, words)))
    return text


def color(name: str) -> str:
    """pyte's name of a colour as rich's."""
    if name == "default":
        return ""
    named = {"brown": "yellow"}.get(name, name)
    return (
        f"#{named}" if re.fullmatch(r"[0-9a-f]{6}", named) else named.replace("bright", "bright_")
    )


def take_top(zgate: Deployment) -> None:
    """The live screen in its sizes and modes."""
    command = [BIN / "zgatectl", "--socket", zgate.socket, "top"]
    with Screen(*command, width=80, height=24) as small:
        with Screen(*command, width=150, height=32) as wide:
            deadline = time.monotonic() + WATCH_S
            while time.monotonic() < deadline:
                small.read()
                wide.read()
            draw(small, "top", "zgatectl top")
            draw(wide, "top-wide", "zgatectl top, on a larger terminal")
            wide.press("q")
            wide.wait_ended()
        small.press("f")
        small.wait_for("allow-office")
        draw(small, "top-flows", "zgatectl top: flows of a session (f)")
        small.press("\x1bk")
        small.wait_for("Kick ")
        draw(small, "top-kick", "zgatectl top: a question before a kick (k)")
        small.press("n")
        zgate.policy_file.write_text(POLICY + "  broken: [\n")
        small.press("i")
        small.wait_for("ALERT", 40)
        draw(small, "top-details", "zgatectl top: what is wrong (i)")
        small.press("q")
        small.wait_ended()
    zgate.policy_file.write_text(POLICY)


def take(name: str, host: Host | None, arguments: list[str | Path], height: int = 50) -> None:
    """A command's output, on a terminal of 100 columns."""
    command: list[str | Path] = [BIN / "zgatectl", *arguments]
    if host is not None:
        command = [*command_in(host.namespace.name, command)]
    with Screen(*command, width=100, height=height) as screen:
        screen.wait_ended()
        shown = [one for one in arguments if not str(one).startswith("/")]
        words = " ".join(str(one) for one in shown if one not in {"--socket", "--config"})
        screen.display.cursor.y = 0
        screen.display.delete_lines(1)  # what was there before
        draw(screen, name, f"zgatectl {words}")


def main() -> None:
    """Make all of them."""
    with world() as zgate:
        take_top(zgate)
        socket: list[str | Path] = ["--socket", zgate.socket]
        take("status", None, [*socket, "status"])
        take("ping", None, [*socket, "ping", CLIENTS[0]])
        gateway_file = zgate.directory / "gateway.yaml"
        take("doctor", zgate.host, [*socket, "doctor", "--config", gateway_file], 70)
        device = zgate.internet.device1
        agent_file = zgate.directory / f"{CLIENTS[0]}.yaml"
        take("netcheck", device, ["netcheck", "--config", agent_file])


if __name__ == "__main__":
    main()
