"""The test bed of the appliance: machines with systemd, in the lab's namespaces.

    files = base()                                    # an empty Debian 12, cached
    with Internet.open() as internet, Machine.at(internet.gateway, ...) as gateway: ...

A machine needs root, systemd-nspawn and mmdebstrap (tools/packages-appliance.txt).
"""

from bed.errors import BedError, CommandFailed
from bed.files import Files, base, layer, with_dependencies
from bed.machine import Machine, make_key, ssh_arguments

__all__ = [
    "BedError",
    "CommandFailed",
    "Files",
    "Machine",
    "base",
    "layer",
    "make_key",
    "ssh_arguments",
    "with_dependencies",
]
