"""The archive: each source made, cleaned, written; a manifest that says what is in it and why."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zgate_cli.answers import BundleFile, BundleReport
from zgate_cli.bundle.redact import Redactor
from zgate_cli.bundle.sources import Missing, Source
from zgate_cli.findings import zgate_version

#: Of one file; of a longer one the end is kept, where the news is.
MAX_FILE_BYTES = 8 * 1024 * 1024
_OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written where."""

    target: Path
    at: datetime
    with_addresses: bool


def write_archive(
    plan: Plan,
    sources: Iterable[Source],
    redactor: Redactor,
    step: Callable[[str], None],
) -> BundleReport:
    """Write the archive, for its owner only; a source that gives nothing is in the manifest.

    Raises:
        OSError: it cannot be written, or there is one of that name already.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(plan.target, flags, _OWNER_ONLY)
    try:
        with (
            os.fdopen(descriptor, "wb") as out,
            tarfile.open(fileobj=out, mode="w:gz") as archive,
        ):
            return _fill(archive, plan, sources, redactor, step)
    except BaseException:
        # Half of one looks like a whole one, and stands in the way of the next attempt.
        plan.target.unlink(missing_ok=True)
        raise


def _fill(
    archive: tarfile.TarFile,
    plan: Plan,
    sources: Iterable[Source],
    redactor: Redactor,
    step: Callable[[str], None],
) -> BundleReport:
    stem = plan.target.name.removesuffix(".tar.gz").removesuffix(".tgz")
    files: list[BundleFile] = []

    def add(path: str, data: bytes) -> None:
        entry = tarfile.TarInfo(f"{stem}/{path}")
        entry.size, entry.mode = len(data), _OWNER_ONLY
        entry.mtime = int(plan.at.timestamp())
        archive.addfile(entry, io.BytesIO(data))

    for source in sources:
        step(source.path)
        made = _make(source, redactor)
        if isinstance(made, bytes):
            add(source.path, made)
            files.append(_described(source, made, redactor))
        else:
            files.append(_absent(source, made, redactor))
    report = BundleReport(
        at=plan.at,
        version=zgate_version(),
        archive=plan.target.name,
        with_addresses=plan.with_addresses,
        redactions=dict(sorted(redactor.counts.items())),
        files=files,
    )
    add("manifest.json", report.model_dump_json(indent=2).encode())
    return report


def _make(source: Source, redactor: Redactor) -> bytes | str:
    """A source's text, cleaned; or why there is none."""
    try:
        text = source.make()
    except Missing as missing:
        return " ".join(str(missing).split())
    except Exception as error:
        # Half of an archive is better than none.
        return f"it could not be made: {type(error).__name__}: {error}"
    # Cleaned first: a cut must not go through what is to be masked.
    return redactor.text(text).encode(errors="replace")[-MAX_FILE_BYTES:]


def _described(source: Source, data: bytes, redactor: Redactor) -> BundleFile:
    return BundleFile(
        path=source.path,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        source=redactor.text(source.origin),
    )


def _absent(source: Source, why: str, redactor: Redactor) -> BundleFile:
    return BundleFile(
        path=source.path,
        size_bytes=0,
        sha256="",
        source=redactor.text(source.origin),
        error=redactor.text(why),
    )
