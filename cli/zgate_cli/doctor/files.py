"""The gateway's files: configuration, policy, certificates and keys, state, room on the disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from zgate_gateway.config import PkiConfig
from zgate_identity.chain import extension
from zgate_identity.files import IdentityFileError
from zgate_identity.gateway_identity import CERTIFICATE_NAME
from zgate_identity.refusal import CertificateRefused
from zgate_identity.server_verifier import ServerVerifier
from zgate_identity.tls_files import check_ca_file, check_server_files, read_certificates, read_crls

from zgate_cli.answers import Finding
from zgate_cli.doctor.host import Context
from zgate_cli.findings import fail, ok, skip, warn
from zgate_cli.output import byte_text, duration_text

#: A certificate of a year is renewed a month before; one of a day, eight hours before.
_SOON = timedelta(days=14)
_WARN_SHARE, _FAIL_SHARE = 0.10, 0.02
_WARN_BYTES, _FAIL_BYTES = 5_000_000_000, 500_000_000


def check_files(context: Context) -> Iterator[Finding]:
    """All of the gateway's files."""
    yield _configuration(context)
    yield _policy(context)
    yield from _identity(context)
    yield _state(context)
    yield _socket(context)
    yield from _disks(context)


def _configuration(context: Context) -> Finding:
    title = "configuration"
    if context.config is None:
        return fail(
            "configuration", title, context.config_problem,
            f"correct {context.config_path}; zgate-gateway --check says the same",
        )  # fmt: skip
    if not context.config_path.exists():
        return ok("configuration", title, f"no {context.config_path}: the defaults hold")
    return ok("configuration", title, f"{context.config_path} is in order")


def _policy(context: Context) -> Finding:
    from zgate_gateway.api.policy_report import check_file

    title, path = "policy", context.settings.policy_file
    if path is None:
        return warn(
            "policy", title, "there is no policy file: everything is denied",
            "write one, and name it with policy_file",
        )  # fmt: skip
    report = check_file(path)
    if not report.valid:
        first = report.findings[0].text if report.findings else "it cannot be loaded"
        return fail("policy", title, first, f"zgatectl policy check {path} lists all that is wrong")
    in_force = context.status.policy if context.status is not None else None
    if in_force is not None and in_force.not_in_force_because is not None:
        return fail(
            "policy", title, f"not in force as written: {in_force.not_in_force_because}",
            "correct the file; zgatectl policy reload",
        )  # fmt: skip
    count = f"{report.rules} rule{'s' if report.rules != 1 else ''}"
    return ok("policy", title, f"{path}: {count}", rules=report.rules)


# Certificates.


def pki_files(context: Context) -> PkiConfig | None:
    """The files that are configured, or those that the gateway makes; None: not yet made."""
    settings = context.settings
    if settings.pki is not None:
        return settings.pki
    folder = settings.state_dir / "pki"
    if not (folder / "gateway.crt").exists():
        return None
    return PkiConfig.model_construct(
        ca=folder / "ca.crt",
        certificate=folder / "gateway.crt",
        key=folder / "gateway.key",
        crl=folder / "crl.pem",
    )


def _identity(context: Context) -> Iterator[Finding]:
    files = pki_files(context)
    if files is None:
        text = f"the gateway makes its own in {context.settings.state_dir / 'pki'} when it starts"
        if context.host.is_root:
            yield ok("certificate", "certificate", text)
        else:
            yield skip("certificate", "certificate", f"none is to be seen; {text}", "run as root")
        return
    yield _certificate(context, files)
    yield _key(context, files)
    yield _authority(context, files)
    yield _chain(context, files)
    yield _crl(context, files)


def _left(until: timedelta) -> tuple[str, bool]:
    return duration_text(max(0.0, until.total_seconds())), until < _SOON


def _certificate(context: Context, files: PkiConfig) -> Finding:
    title = "certificate"
    try:
        found = check_server_files(files.certificate, files.key, context.now)
    except IdentityFileError as error:
        if isinstance(error.__cause__, PermissionError) and not context.host.is_root:
            return skip("certificate", title, str(error), "run zgatectl doctor as root")
        return fail("certificate", title, str(error), _renewal(context))
    days = found.time_left / timedelta(days=1)
    left, is_soon = _left(found.time_left)
    lifetime = found.leaf.not_valid_after_utc - found.leaf.not_valid_before_utc
    # Short-lived ones are renewed by a machine: these are late when little of their life is left.
    is_late = is_soon if lifetime > 4 * _SOON else found.time_left < lifetime / 6
    if is_late:
        return warn("certificate", title, f"expires in {left}", _renewal(context), days_left=days)
    return ok("certificate", title, f"valid for {left} more", days_left=days)


def _renewal(context: Context) -> str:
    if context.settings.pki is None:
        return "the gateway renews it by itself, 30 days before: see its log why it has not"
    return "issue a new one (zgatectl pki issue --usage server); the gateway takes it at SIGHUP"


def _key(context: Context, files: PkiConfig) -> Finding:
    title = "key's mode"
    try:
        mode = stat.S_IMODE(files.key.stat().st_mode)
    except OSError as error:
        if context.host.is_root:
            return fail("key_mode", title, f"{files.key}: {error.strerror}", "see pki.key")
        return skip("key_mode", title, f"{files.key}: {error.strerror}", "run as root")
    if mode & 0o077 & ~0o040 or mode & 0o020:
        return fail(
            "key_mode", title, f"{files.key} is {mode:04o}: others can read it",
            f"chmod 600 {files.key}, and think of issuing another one", mode=f"{mode:04o}",
        )  # fmt: skip
    return ok("key_mode", title, f"{mode:04o}", mode=f"{mode:04o}")


def _authority(context: Context, files: PkiConfig) -> Finding:
    title = "authority"
    try:
        authorities = check_ca_file(files.ca, context.now)
    except IdentityFileError as error:
        return fail("authority", title, str(error), "name the authority's certificate in pki.ca")
    newest = max(one.not_valid_after_utc for one in authorities)
    left, is_soon = _left(newest - context.now)
    days = (newest - context.now) / timedelta(days=1)
    if is_soon:
        return warn(
            "authority", title, f"expires in {left}: nobody can connect then",
            "make a new authority, put its certificate beside the old one in pki.ca, and give it "
            "to all agents before the old one ends", days_left=days,
        )  # fmt: skip
    return ok("authority", title, f"valid for {left} more", days_left=days)


def _chain(context: Context, files: PkiConfig) -> Finding:
    title = "chain"
    try:
        leaf, *others = read_certificates(files.certificate)
        names = extension(leaf, x509.SubjectAlternativeName)
        host = str(next(iter(names)).value) if names is not None else CERTIFICATE_NAME
        verifier = ServerVerifier(check_ca_file(files.ca, context.now), host)
        chain = [one.public_bytes(Encoding.DER) for one in (leaf, *others)]
        verifier.verify(chain[0], chain[1:], context.now)
    except (IdentityFileError, CertificateRefused, ValueError, StopIteration) as error:
        return fail(
            "chain", title, str(error) or "the certificate names no host",
            "agents will refuse this gateway: issue its certificate by the authority in pki.ca",
        )  # fmt: skip
    return ok("chain", title, f"agents that dial {host} accept it")


def _crl(context: Context, files: PkiConfig) -> Finding:
    title = "revocation list"
    if files.crl is None:
        return warn("crl", title, "none: no certificate is ever revoked", "name a list in pki.crl")
    try:
        lists = read_crls(files.crl)
    except IdentityFileError as error:
        return fail("crl", title, str(error), "copy the authority's list again")
    ends = [one.next_update_utc for one in lists if one.next_update_utc is not None]
    if not ends:
        return ok("crl", title, "holds for ever")
    left, days = min(ends) - context.now, (min(ends) - context.now) / timedelta(days=1)
    fix = "zgatectl pki crl signs it anew; copy it to where pki.crl is"
    if left <= timedelta():
        text = f"ended at {min(ends):%F %T}Z: no client can connect"
        return fail("crl", title, text, fix, days_left=days)
    if left < timedelta(days=1):
        return warn("crl", title, f"ends in {duration_text(left.total_seconds())}", fix)
    return ok("crl", title, f"holds for {duration_text(left.total_seconds())} more", days_left=days)


# State.


def _state(context: Context) -> Finding:
    title, folder = "state directory", context.settings.state_dir
    try:
        found = folder.stat()
        if stat.S_IMODE(found.st_mode) & 0o007:
            return warn("state_dir", title, f"{folder} is open to everybody", f"chmod 700 {folder}")
        is_read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return ok("state_dir", title, f"{folder} is made when the gateway starts")
    except OSError as error:
        return skip("state_dir", title, f"{folder}: {error.strerror}", "run as root")
    if is_read_only:
        return fail(
            "state_dir", title, f"{folder} is on a read-only file system",
            "mount it read-write: leases, audit log and store are there",
        )  # fmt: skip
    return ok("state_dir", title, str(folder))


def _socket(context: Context) -> Finding:
    title, path = "api socket", context.socket_path
    try:
        found = path.stat()
    except OSError:
        if context.status is None:
            return ok("socket", title, f"no {path}: the gateway does not run")
        return skip("socket", title, f"{path} is not to be seen")
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISSOCK(found.st_mode) or mode & 0o007:
        return fail(
            "socket", title, f"{path} has mode {mode:04o}: everybody may steer the gateway",
            "restart the gateway, which makes it anew", mode=f"{mode:04o}",
        )  # fmt: skip
    return ok("socket", title, f"{path}, mode {mode:04o}", mode=f"{mode:04o}")


def _disks(context: Context) -> Iterator[Finding]:
    """One finding for each file system that the gateway writes to."""
    settings = context.settings
    seen: set[int] = set()
    folders = [settings.state_dir, settings.runtime_dir]
    if settings.audit.path is not None:
        folders.insert(1, settings.audit.path.parent)
    for folder in folders:
        there = _nearest(folder)
        try:
            device = there.stat().st_dev
            if device in seen:
                continue
            seen.add(device)
            use = os.statvfs(there)
        except OSError as error:
            yield skip("disk", "disk", f"{there}: {error.strerror}", "run as root")
            continue
        yield judge_disk(folder, use)


def _nearest(folder: Path) -> Path:
    """The folder, or what there is of the way to it."""
    return next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))


def judge_disk(folder: Path, use: os.statvfs_result) -> Finding:
    """How much room there is."""
    free, whole = use.f_bavail * use.f_frsize, max(1, use.f_blocks * use.f_frsize)
    inodes = use.f_favail / use.f_files if use.f_files else 1.0
    text = f"{folder}: {byte_text(free)} free ({free / whole:.0%}), {inodes:.0%} of its inodes"
    values = {"free_bytes": free, "free_share": free / whole, "free_inodes_share": inodes}
    fix = "make room: old audit files (audit.jsonl.*) may be archived; see audit.max_bytes"
    # A large disk is not nearly full with a hundredth of it free.
    share = free / whole
    if inodes < _FAIL_SHARE or (share < _FAIL_SHARE and free < _FAIL_BYTES):
        return fail("disk", "disk", text, fix, **values)
    if inodes < _WARN_SHARE or (share < _WARN_SHARE and free < _WARN_BYTES):
        return warn("disk", "disk", text, fix, **values)
    return ok("disk", "disk", text, **values)
