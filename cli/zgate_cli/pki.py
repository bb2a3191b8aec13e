"""``zgatectl pki``: the certificate authority on this machine.

It works on a directory, not through the gateway: certificates can be issued on a machine that
never sees the network. The gateway picks up a new revocation list by itself.

Exit codes: 0 done (also when there was nothing to do), 1 failed, 2 bad input.
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, ParamSpec

import click
from rich.text import Text
from zgate_identity.authority import (
    LEAF_LIFETIME,
    AuthorityError,
    CertificateAuthority,
    Credentials,
    IssuedCertificate,
    UnknownCertificateError,
)
from zgate_identity.files import IdentityError
from zgate_identity.names import file_stem
from zgate_identity.profile import Usage
from zgate_identity.tls_files import AgentBundle, write_agent_bundle

DEFAULT_DIRECTORY = Path("/var/lib/zgate/pki")
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

P = ParamSpec("P")
_STATUS_STYLE = {"valid": "green", "revoked": "red"}


class IpAddressType(click.ParamType[IPv4Address | IPv6Address]):
    """An IPv4 or IPv6 address on the command line."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Address | IPv6Address:
        """The address, or a usage error."""
        try:
            return ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)


def common_options(command: Callable[P, None]) -> Callable[P, None]:
    """--dir and --json, and one line with the right exit code for what goes wrong."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except IdentityError as error:
            click.echo(f"zgatectl: {error}", err=True)
            bad_input = isinstance(error, AuthorityError)
            bad_input = bad_input and not isinstance(error, UnknownCertificateError)
            sys.exit(EXIT_BAD_INPUT if bad_input else EXIT_FAILED)

    directory = click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_DIRECTORY,
        show_default=True,
        help="The directory of the authority.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return directory(as_json(guarded))


@click.group()
def pki() -> None:
    """The certificate authority: issue, revoke and list identities."""


@pki.command()
@common_options
def init(directory: Path, as_json: bool) -> None:
    """Make the authority, if there is none."""
    authority, created = CertificateAuthority.open(directory, _now())
    if as_json:
        _print_json({"created": created, **_authority_fields(authority)})
        return
    verb = "made" if created else "is there already, nothing was changed:"
    click.echo(f"The authority {verb} {authority.certificate.subject.rfc4514_string()}")
    click.echo(f"  certificate      {authority.ca_file}")
    click.echo(f"  revocation list  {authority.crl_file}")
    click.echo(f"  valid until      {_date(authority.certificate.not_valid_after_utc)}")


@pki.command()
@click.argument("name")
@click.option("--group", "-g", "groups", multiple=True, help="A group of the client; repeatable.")
@click.option(
    "--usage", type=click.Choice([usage.value for usage in Usage]), default=Usage.CLIENT.value,
    show_default=True, help="What the certificate is for.",
)  # fmt: skip
@click.option("--dns", "dns_names", multiple=True, help="A host name of the server; repeatable.")
@click.option(
    "--ip", "ips", type=IpAddressType(), multiple=True, help="An address of the server; repeatable."
)
@click.option(
    "--connector", "offers", metavar="SERVICE", multiple=True,
    help="A service that the client may offer, * for all; repeatable.",
)  # fmt: skip
@click.option(
    "--agent", "reaches", metavar="SERVICE", multiple=True,
    help="A service that the client is narrowed to, * for all; repeatable.",
)  # fmt: skip
@click.option(
    "--days", type=click.IntRange(min=1), default=LEAF_LIFETIME.days, show_default=True,
    help="How long it is valid.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Where its files go.  [default: issued/NAME in the directory of the authority]",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Overwrite files that are there already.")
@common_options
def issue(
    *,
    name: str,
    groups: Sequence[str],
    usage: str,
    dns_names: Sequence[str],
    ips: Sequence[IPv4Address | IPv6Address],
    offers: Sequence[str],
    reaches: Sequence[str],
    days: int,
    out: Path | None,
    replace: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Issue a certificate for NAME and write the files that its owner needs.

    A server without --dns and --ip is known by NAME. A client with --connector may offer those
    services without a word in the policy; one with --agent reaches those services at most.
    """
    now = _now()
    authority = CertificateAuthority.load(directory)
    target = out or directory / "issued" / file_stem(name)
    if not replace:
        AgentBundle.paths(target, name).require_free()
    if usage == Usage.SERVER and not dns_names and not ips:
        dns_names = (name,)
    credentials = authority.issue(
        name,
        groups=groups,
        usage=Usage(usage),
        dns_names=dns_names,
        ips=ips,
        offers=offers,
        reaches=reaches,
        lifetime=timedelta(days=days),
        now=now,
    )
    bundle = _write(target, name, credentials, replace=replace)
    if as_json:
        _print_json({**_fields(credentials.issued, now), "files": _bundle_fields(bundle)})
        return
    click.echo(f"Issued for {name}, serial {credentials.issued.serial_text}")
    if credentials.issued.offers:
        click.echo(f"  may offer    {', '.join(credentials.issued.offers)}")
    if credentials.issued.reaches is not None:
        click.echo(f"  narrowed to  {', '.join(credentials.issued.reaches)}")
    click.echo(f"  valid until  {_date(credentials.issued.not_after)}")
    click.echo(f"  certificate  {bundle.certificate_file}")
    click.echo(f"  key          {bundle.key_file}")
    click.echo(f"  CA           {bundle.ca_file}")


@pki.command()
@click.argument("name_or_serial", metavar="NAME|SERIAL")
@common_options
def revoke(name_or_serial: str, directory: Path, as_json: bool) -> None:
    """Revoke all certificates of NAME, or the one with SERIAL (hexadecimal)."""
    now = _now()
    authority = CertificateAuthority.load(directory)
    revoked = authority.revoke(name_or_serial, now)
    if as_json:
        _print_json(
            {"revoked": [_fields(each, now) for each in revoked], **_authority_fields(authority)}
        )
        return
    if not revoked:
        click.echo(f"Nothing to do: {name_or_serial} is revoked or expired already.")
        return
    for each in revoked:
        click.echo(f"Revoked {each.name}, serial {each.serial_text}")
    click.echo(f"The gateway acts on {authority.crl_file}; copy it to gateways elsewhere.")


@pki.command("list")
@common_options
def list_(directory: Path, as_json: bool) -> None:
    """Show all certificates that were issued."""
    now = _now()
    certificates = CertificateAuthority.load(directory).list()
    if as_json:
        _print_json([_fields(each, now) for each in certificates])
        return
    from .output import console, table  # not for those who issue on a machine of its own

    shown = table("name", "groups", "usage", "hosts, services", "valid until", "status", "serial")
    for each in certificates:
        shown.add_row(*_row(each, now))
    console().print(shown)


@pki.command()
@common_options
def crl(directory: Path, as_json: bool) -> None:
    """Sign the revocation list anew, before it expires."""
    authority = CertificateAuthority.load(directory)
    authority.refresh_crl(_now())
    if as_json:
        _print_json(_authority_fields(authority))
        return
    current = authority.crl
    click.echo(
        f"{authority.crl_file}: {len(current.serials)} revoked, number {current.number}, "
        f"valid until {_date(current.next_update)}"
    )


def _write(target: Path, name: str, credentials: Credentials, *, replace: bool) -> AgentBundle:
    try:
        return write_agent_bundle(
            target,
            name,
            ca_pem=credentials.ca_pem,
            certificate_pem=credentials.certificate_pem,
            key_pem=credentials.key_pem,
            replace=replace,
        )
    except IdentityError:
        serial = credentials.issued.serial_text
        click.echo(f"zgatectl: {serial} was issued, but could not be written", err=True)
        raise


def _now() -> datetime:
    return datetime.now(UTC)


def _date(moment: datetime) -> str:
    return f"{moment:%F %T} UTC"


def _row(certificate: IssuedCertificate, now: datetime) -> list[Text]:
    from .output import cell

    status = certificate.status(now)
    hosts = (*certificate.dns_names, *map(str, certificate.ips))
    cells = [
        certificate.name,
        ", ".join(certificate.groups),
        certificate.usage.value,
        ", ".join(hosts),
        f"{certificate.not_after:%F}",
    ]
    return [
        *map(cell, cells),
        cell(status, _STATUS_STYLE.get(status, "yellow")),
        cell(certificate.serial_text),
    ]


def _fields(certificate: IssuedCertificate, now: datetime) -> dict[str, object]:
    revoked_at = certificate.revoked_at
    return {
        "name": certificate.name,
        "groups": certificate.groups,
        "usage": certificate.usage,
        "serial": certificate.serial_text,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "fingerprint_sha256": certificate.fingerprint,
        "dns_names": certificate.dns_names,
        "ips": [str(ip) for ip in certificate.ips],
        "offers": certificate.offers,
        "reaches": certificate.reaches,
        "revoked_at": revoked_at.isoformat() if revoked_at else None,
        "status": certificate.status(now),
    }


def _bundle_fields(bundle: AgentBundle) -> dict[str, str]:
    return {
        "ca": str(bundle.ca_file),
        "certificate": str(bundle.certificate_file),
        "key": str(bundle.key_file),
    }


def _authority_fields(authority: CertificateAuthority) -> dict[str, object]:
    current = authority.crl
    return {
        "authority": authority.certificate.subject.rfc4514_string(),
        "not_after": authority.certificate.not_valid_after_utc.isoformat(),
        "ca_file": str(authority.ca_file),
        "crl_file": str(authority.crl_file),
        "crl_number": current.number,
        "crl_next_update": current.next_update.isoformat(),
    }


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
