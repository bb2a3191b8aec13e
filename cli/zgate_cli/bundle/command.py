"""``zgatectl bundle``: the command line."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import click
from zgate_gateway.config import DEFAULT_PATH

from zgate_cli.bundle.archive import Plan, write_archive
from zgate_cli.bundle.redact import Redactor
from zgate_cli.bundle.sources import Material, sources_of
from zgate_cli.doctor.command import make_context
from zgate_cli.errors import BadInput
from zgate_cli.options import Invocation, gateway_command
from zgate_cli.output import byte_text, cell, print_json, progress


@click.command()
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
    help="The archive.  [default: zgate-bundle-TIME.tar.gz, here]",
)  # fmt: skip
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH,
    show_default=True, help="The gateway's configuration.",
)  # fmt: skip
@click.option("--with-addresses", is_flag=True, help="Leave IP and MAC addresses as they are.")
@click.option(
    "--log-lines", type=click.IntRange(0, 1_000_000), default=5000, show_default=True,
    help="So many of the journal, the newest.",
)  # fmt: skip
@gateway_command
def bundle(
    invocation: Invocation,
    *,
    output: Path | None,
    config_path: Path,
    with_addresses: bool,
    log_lines: int,
) -> None:
    """Put what support needs to know about this gateway into one archive, without secrets.

    Status, configuration, policy, doctor's findings, metrics, the journal's end, firewall rules,
    routes, kernel programs, versions; manifest.json lists them. No key and no certificate is
    read; what looks like a secret is masked; each address is replaced by a name that is the same
    all over the archive. Clients' names stay. Works with the gateway down; run it as root.
    """
    now = datetime.now(UTC)
    target = output or Path(f"zgate-bundle-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    redactor = Redactor(secrets.token_bytes(16), with_addresses=with_addresses)
    context = make_context(invocation, config_path)
    sources = list(sources_of(Material(context, redactor, log_lines)))
    try:
        with progress(len(sources), "collecting") as step:
            plan = Plan(target, now, with_addresses)
            report = write_archive(plan, sources, redactor, step)
    except OSError as error:
        raise BadInput(f"{target}: {error.strerror}", "name another file with --output") from error
    if invocation.as_json:
        print_json(report)
        return
    missing = [one for one in report.files if one.error is not None]
    size = byte_text(target.stat().st_size)
    click.echo(f"{target}: {len(report.files) - len(missing)} files, {size}")
    for one in missing:
        click.echo(cell(f"  without {one.path}: {one.error}").plain)
    masked = ", ".join(f"{count} of kind {kind}" for kind, count in report.redactions.items())
    click.echo(f"Masked: {masked or 'nothing'}. Look into it before you send it on.")
