"""All of the gateway's kernel network state, in the order that keeps it closed.

    start   leftovers of a killed predecessor away; then, with the TUN open and down:
            1 programs attached   2 addresses   3 nftables, then forwarding   4 link up, routes
    stop    link down and programs off; sysctls back; nftables away, or held for the next one

Until step 4 no packet reaches the TUN or leaves it, and by then the programs decide. Whatever a
SIGKILL interrupts, the TUN goes away with the process, and with it everything that could pass.
"""

import contextlib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from zgate_host.sysctls import Forwarding, Sysctls, read_forwarding

from zgate_gateway.net.errors import NetError
from zgate_gateway.net.firewall import (
    FAMILY,
    TABLE,
    Firewall,
    FirewallSettings,
    RuleCounter,
    remove_table,
    table_exists,
)
from zgate_gateway.net.links import (
    DEFAULT_QUEUE_PACKETS,
    Hook,
    Network,
    TunLink,
    interface_names,
)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What the gateway's network is made from."""

    tun_name: str
    mtu_bytes: int
    ipv4_pool: IPv4Network
    ipv6_pool: IPv6Network
    state_file: Path  # where the host's sysctls are remembered, in the runtime directory
    queue_packets: int = DEFAULT_QUEUE_PACKETS
    service_pools: tuple[IPv4Network | IPv6Network, ...] = ()
    masquerade: bool = True
    uplink: str | None = None  # masquerade to this interface only; None: to all but the TUN


class GatewayNetwork:
    """Link, firewall and sysctls of one gateway. All calls block, for a few milliseconds."""

    def __init__(self, settings: NetworkSettings):
        self._settings = settings
        self._link = TunLink(
            settings.tun_name,
            settings.mtu_bytes,
            settings.ipv4_pool,
            settings.ipv6_pool,
            settings.queue_packets,
            settings.service_pools,
        )
        self._sysctls = Sysctls(settings.state_file)
        self._firewall: Firewall | None = None
        self._programs: dict[Hook, int] = {}
        self._led_here: set[Network] = set()
        self._has_leftover_table = False

    def prepare(self) -> list[str]:
        """Remove what a killed predecessor left, before the TUN is opened.

        Its nftables table stays until `open` puts ours in its place: it translates the addresses of
        connections that are to survive.

        Returns one line for each thing that was found. NetError when an interface of the TUN's
        name is there: another gateway runs, or somebody else uses the name.
        """
        self._check_interfaces()
        found = []
        restored = self._sysctls.restore_leftovers()
        if restored:
            found.append(f"put back {restored} sysctls that an earlier run had changed")
        self._has_leftover_table = table_exists()
        if self._has_leftover_table:
            found.append(f"took over the nftables table {FAMILY} {TABLE} of an earlier run")
        return found

    def open(self, ingress_fd: int, egress_fd: int) -> None:
        """Set everything up around the opened TUN; take it all back when a step fails."""
        try:
            self._open(ingress_fd, egress_fd)
        except BaseException:
            with contextlib.suppress(NetError):  # the first error is the one to tell
                self.close()
            raise

    def verify(self) -> None:
        """Raise NetError when something has been changed by others since `open`."""
        self.verify_programs()
        self._link.verify()
        self._sysctls.verify()
        if self._firewall is not None:
            self._firewall.verify()

    def verify_programs(self) -> None:
        """Raise NetError unless our programs decide at both hooks. May run in a thread."""
        for hook, program_fd in self._programs.items():
            self._link.verify_attached(hook, program_fd)

    def add_route(self, network: Network) -> None:
        """Lead a network into the TUN, and let nobody outside borrow its addresses.

        NetError: it cannot be, or the host leads it elsewhere.
        """
        self._guard({*self._led_here, network})
        try:
            self._link.add_route(network)
        except NetError:
            self._guard(self._led_here)
            raise
        self._led_here.add(network)

    def remove_route(self, network: Network) -> None:
        """Lead a network into the TUN no more; NetError if it cannot be taken back."""
        self._link.remove_route(network)
        self._led_here.discard(network)
        self._guard(self._led_here)

    def _guard(self, networks: set[Network]) -> None:
        if self._firewall is not None:
            self._firewall.set_networks(networks)

    def host_networks(self) -> list[tuple[str, Network]]:
        """The networks of the host's other interfaces, with the interfaces' names."""
        return self._link.other_networks()

    def counters(self) -> dict[str, RuleCounter]:
        """Read the firewall's counters; empty while it is not installed."""
        return self._firewall.counters() if self._firewall else {}

    def close(self, *, hold: bool = False) -> None:
        """Take everything back, also after a failed `open`; the TUN may be gone already.

        With `hold` connections are to survive until the next start (`Firewall.hold`).
        Every step is tried; NetError, at the end, names those that failed.
        """
        problems = []
        steps = (
            self._close_link,
            self._sysctls.restore,
            self._hold_firewall if hold else self._close_firewall,
        )
        for step in steps:
            try:
                step()
            except (NetError, OSError) as error:
                problems.append(str(error))
        if problems:
            raise NetError("; ".join(problems))

    def look_at_state_file(self) -> None:
        """Write the host's sysctls down again if somebody has removed the file. NetError."""
        self._sysctls.keep_file()

    def _open(self, ingress_fd: int, egress_fd: int) -> None:
        for hook, program_fd in ((Hook.INGRESS, ingress_fd), (Hook.EGRESS, egress_fd)):
            self._programs[hook] = program_fd
            self._link.attach(hook, program_fd)
        self._link.configure()
        # The table first: a host that has not been a router must not be one without it.
        self._install_firewall(read_forwarding())
        self._sysctls.enable_forwarding(self._settings.tun_name)
        self._link.up()
        self.verify()

    def _install_firewall(self, forwarding: Forwarding) -> None:
        settings = self._settings
        self._firewall = Firewall(
            FirewallSettings(
                settings.tun_name,
                settings.ipv4_pool,
                settings.ipv6_pool,
                masquerade=settings.masquerade,
                uplink=settings.uplink,
                only_tunnel_ipv4=not forwarding.is_on_ipv4,
                only_tunnel_ipv6=not forwarding.is_on_ipv6,
                service_pools=settings.service_pools,
            )
        )
        self._firewall.install()

    def _check_interfaces(self) -> None:
        names = interface_names()
        settings = self._settings
        if settings.tun_name in names:
            raise NetError(
                f"an interface {settings.tun_name} exists: another zgate-gateway runs here,"
                " or somebody else uses the name; stop it, or set tun.name"
            )
        if settings.uplink is not None and settings.uplink not in names:
            raise NetError(
                f"uplink.interface: there is no interface {settings.uplink}"
                f" (there are: {', '.join(sorted(names))})"
            )

    def _close_link(self) -> None:
        if self._programs and self._settings.tun_name in interface_names():
            self._link.detach()
        self._programs.clear()

    def _close_firewall(self) -> None:
        if self._firewall is not None:
            self._firewall.remove()
            self._firewall = None
        elif self._has_leftover_table:
            remove_table()

    def _hold_firewall(self) -> None:
        if self._firewall is not None and self._settings.masquerade:
            self._firewall.hold()
            self._firewall = None
        else:
            self._close_firewall()
