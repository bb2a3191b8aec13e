"""The identity of a gateway that was given none: its own authority and server certificate.

`ensure_gateway_identity` is idempotent; the daemon calls it at start and once a day. It makes
what is missing, renews what runs out or no longer fits, and touches nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from zgate_identity.authority import LEAF_LIFETIME, CertificateAuthority
from zgate_identity.chain import extension, signed_by
from zgate_identity.files import PRIVATE_MODE, IdentityFileError, write_file
from zgate_identity.names import Host, general_name, parse_host
from zgate_identity.profile import Usage
from zgate_identity.tls_files import check_server_files

RENEW_BEFORE = timedelta(days=30)
CERTIFICATE_NAME = "zgate-gateway"
"""The Common Name, and the host name where the configuration names none."""


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """The files that the gateway serves with, and what was done to have them.

    Attributes:
        ca_file, crl_file: what client certificates are checked against.
        certificate_file, key_file: the gateway's own.
        authority_created, certificate_issued: whether this call made them.
        crl_refreshed: whether this call signed the revocation list anew.
    """

    ca_file: Path
    crl_file: Path
    certificate_file: Path
    key_file: Path
    authority_created: bool
    certificate_issued: bool
    crl_refreshed: bool


def ensure_gateway_identity(
    state_dir: Path, server_names: Sequence[str], now: datetime
) -> GatewayIdentity:
    """An authority in ``state_dir/pki``, and a server certificate for `server_names`.

    The certificate is issued anew if it is missing, has less than 30 days left, does not fit
    its key or the names, or is revoked. `server_names` are host names or addresses.

    Raises:
        IdentityFileError: the directory cannot be used, or the authority in it is damaged.
            A damaged authority is never replaced: every agent would lose its gateway.
        AuthorityError: the authority itself is at its end.
        ValueError: a server name is no host name and no address.
    """
    hosts = tuple(dict.fromkeys(parse_host(name) for name in server_names or (CERTIFICATE_NAME,)))
    authority, created = CertificateAuthority.open(state_dir / "pki", now)
    refreshed = authority.refresh_crl(now, if_needed=True)
    certificate_file = authority.directory / "gateway.crt"
    key_file = authority.directory / "gateway.key"
    issue = not _still_good(authority, certificate_file, key_file, hosts, now)
    if issue:
        _issue(authority, certificate_file, key_file, hosts, now)
    return GatewayIdentity(
        ca_file=authority.ca_file,
        crl_file=authority.crl_file,
        certificate_file=certificate_file,
        key_file=key_file,
        authority_created=created,
        certificate_issued=issue,
        crl_refreshed=refreshed,
    )


def _still_good(
    authority: CertificateAuthority,
    certificate_file: Path,
    key_file: Path,
    hosts: Sequence[Host],
    now: datetime,
) -> bool:
    try:
        files = check_server_files(certificate_file, key_file, now)
    except IdentityFileError:
        return False  # whatever it is, a new certificate cures it
    names = extension(files.leaf, x509.SubjectAlternativeName)
    return (
        files.time_left >= RENEW_BEFORE
        and names is not None
        and set(names) == set(map(general_name, hosts))
        and signed_by(files.leaf, authority.certificate)
        and files.leaf.serial_number not in authority.crl.serials
    )


def _issue(
    authority: CertificateAuthority,
    certificate_file: Path,
    key_file: Path,
    hosts: Sequence[Host],
    now: datetime,
) -> None:
    """Two files cannot change as one: between them they do not match, and the next call heals."""
    left = authority.certificate.not_valid_after_utc - now
    credentials = authority.issue(
        CERTIFICATE_NAME,
        usage=Usage.SERVER,
        dns_names=[host for host in hosts if isinstance(host, str)],
        ips=[host for host in hosts if not isinstance(host, str)],
        lifetime=min(LEAF_LIFETIME, left),
        now=now,
    )
    write_file(key_file, credentials.key_pem, PRIVATE_MODE)
    write_file(certificate_file, credentials.certificate_pem)
