"""A day in the life of short-lived certificates: a new one every minute, and no session is dropped.

    python tests/soak/certificates.py 1440

A minute is as short here as a renewal takes, and a certificate lives for some seconds of real time:
one that is renewed too late is an expired one, and ends its session. The agent's certificate is
replaced so many times (1440: a day of minutes), the gateway's own after every tenth, the revocation
list after every hundredth, while a TCP stream whose bytes are compared runs through the tunnel.
Ends with a table, and with status 1 if a session ended otherwise than by being replaced.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zgate_identity.authority import CertificateAuthority, Credentials
from zgate_identity.profile import Usage
from zgate_lab.deployment import SERVER_NAME, Deployment
from zgate_lab.errors import LabError
from zgate_lab.internet import Internet
from zgate_lab.stream import TcpStream
from zgate_lab.waiting import SLOWNESS, wait_until

POLICY = """\
version: "1.0"
clients:
  alice:
    rules:
      - {id: office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24], protocols: [tcp]}
"""
PORT = 5002
RATE_BYTES_PER_S = 200_000
#: Longer than a renewal takes, whatever else the machine does.
LIFETIME_S = 20.0 * SLOWNESS
OWN_EVERY, LIST_EVERY = 10, 100
REPLACED = "replaced by a newer session of the same client"
#: What ends a session whose place another has taken already.
IN_ORDER = frozenset({REPLACED, "renewed"})


@dataclass
class Result:
    """What a run came to."""

    renewals: int = 0
    own_renewals: int = 0
    lists: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    carried_bytes: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    failure: str = ""

    def failures(self) -> list[str]:
        """What was not as it has to be."""
        found = [self.failure] if self.failure else []
        return found + [f"a session ended: {cause}" for cause in self.ends if cause not in IN_ORDER]

    def table(self) -> str:
        """For people."""
        return (
            f"{self.renewals} certificates of the agent, {self.own_renewals} of the gateway, "
            f"{self.lists} revocation lists in {self.seconds:.0f} s; slowest renewal "
            f"{self.slowest_s:.2f} s; {self.carried_bytes >> 20} MiB in one TCP stream; "
            f"sessions ended: {dict(self.ends)}"
        )


def live(zgate: Deployment, renewals: int) -> Result:
    """Gateway and agent through so many renewals."""
    result = Result()
    authority = CertificateAuthority.load(zgate.pki)
    office = zgate.internet.office
    put_own(zgate, authority)
    put_client(zgate, authority, LIFETIME_S)
    zgate.start_gateway()
    zgate.start_agent("alice", zgate.internet.device1)
    device = zgate.internet.device1.namespace.name
    began_s = time.monotonic()
    with TcpStream(
        device, office, office.ipv4, PORT, upload=True, bytes_per_s=RATE_BYTES_PER_S
    ) as stream:
        try:
            for number in range(1, renewals + 1):
                renew(zgate, authority, number, result)
            stream.wait_for_more(1, 10.0)
            put_client(zgate, authority, 3600.0)
            stream.finish()
        except LabError as error:
            result.failure = f"{type(error).__name__}: {error}"
        result.carried_bytes = stream.received_bytes
    result.seconds = time.monotonic() - began_s
    result.ends = Counter(str(one["cause"]) for one in zgate.audit("session_down"))
    return result


def renew(zgate: Deployment, authority: CertificateAuthority, number: int, result: Result) -> None:
    """One minute of the day."""
    if number % OWN_EVERY == 0:
        put_own(zgate, authority)
        result.own_renewals += 1
    if number % LIST_EVERY == 0:
        authority.refresh_crl(datetime.now(UTC))
        result.lists += 1
    began_s = time.monotonic()
    serial = put_client(zgate, authority, LIFETIME_S)

    def has_come() -> bool:
        session = zgate.sessions().get("alice", {})
        return session.get("certificate_serial") == serial

    wait_until(has_come, LIFETIME_S, f"the session with certificate {number}")
    result.renewals += 1
    result.slowest_s = max(result.slowest_s, time.monotonic() - began_s)


def put_client(zgate: Deployment, authority: CertificateAuthority, lifetime_s: float) -> str:
    """A new certificate for the agent; its serial number as the gateway shows it."""
    lifetime = timedelta(seconds=lifetime_s)
    issued = authority.issue("alice", lifetime=lifetime, now=datetime.now(UTC))
    put(zgate.directory / "alice", "alice", issued)
    return f"{issued.issued.serial:040x}"


def put_own(zgate: Deployment, authority: CertificateAuthority) -> None:
    """A new certificate for the gateway, which is valid for a day."""
    issued = authority.issue(
        "gateway",
        usage=Usage.SERVER,
        dns_names=[SERVER_NAME],
        ips=[zgate.host.ipv4],
        lifetime=timedelta(days=1),
        now=datetime.now(UTC),
    )
    put(zgate.directory / "gateway", "gateway", issued)


def put(folder: Path, name: str, issued: Credentials) -> None:
    """Replace both files; between the two they do not fit."""
    for suffix, data in ((".key", issued.key_pem), (".crt", issued.certificate_pem)):
        draft = folder / f"{name}{suffix}.new"
        draft.touch(0o600)
        draft.write_bytes(data)
        draft.rename(folder / f"{name}{suffix}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("renewals", type=int, nargs="?", default=1440)
    renewals = parser.parse_args().renewals
    with Internet.open() as internet:
        zgate = Deployment(internet, POLICY)
        zgate.make_identities({"alice": []})
        try:
            result = live(zgate, renewals)
        finally:
            zgate.stop()
    print(result.table())
    for failure in result.failures():
        print(failure, file=sys.stderr)
    return 1 if result.failures() or result.renewals < renewals else 0


if __name__ == "__main__":
    sys.exit(main())
