"""Telling when certificate, key and CA have been replaced by others that can be used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from zgate_host.identity_watch import IdentityFiles, watch_identity
from zgate_identity.authority import CertificateAuthority

SOON_S = 5.0


class Pki:
    """An authority, and a client's files that a test replaces."""

    def __init__(self, directory: Path) -> None:
        self.authority = CertificateAuthority.create(directory / "ca", now=datetime.now(UTC))
        self.files = IdentityFiles(
            self.authority.ca_file, directory / "alice.crt", directory / "alice.key"
        )
        self.write(*self.issue())

    def issue(self) -> tuple[bytes, bytes]:
        issued = self.authority.issue("alice", now=datetime.now(UTC))
        return issued.certificate_pem, issued.key_pem

    def write(self, certificate: bytes | None, key: bytes | None) -> None:
        for path, data in ((self.files.certificate, certificate), (self.files.key, key)):
            if data is not None:
                fresh = path.with_suffix(".new")
                fresh.write_bytes(data)
                fresh.chmod(0o600)
                fresh.rename(path)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@asynccontextmanager
async def watching(pki: Pki, patience_s: float = 60.0) -> AsyncIterator[list[str]]:
    told: list[str] = []
    watch = watch_identity(pki.files, told.append, interval_s=0.01, patience_s=patience_s)
    task = asyncio.create_task(watch)
    await asyncio.sleep(0.05)
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_another_certificate_with_its_key(pki: Pki) -> None:
    async with watching(pki) as told:
        pki.write(*pki.issue())
        await until(lambda: told)
        await asyncio.sleep(0.1)
        assert told == [""]
        pki.write(*pki.issue())
        await until(lambda: len(told) == 2)


async def test_a_certificate_without_its_key_is_waited_for(pki: Pki) -> None:
    certificate, key = pki.issue()
    async with watching(pki) as told:
        pki.write(certificate, None)
        await asyncio.sleep(0.2)
        assert told == []
        pki.write(None, key)
        await until(lambda: told == [""])


async def test_files_that_stay_wrong_are_told_once(pki: Pki) -> None:
    certificate, key = pki.issue()
    async with watching(pki, patience_s=0.05) as told:
        pki.write(certificate, None)
        await until(lambda: told)
        await asyncio.sleep(0.1)
        assert len(told) == 1 and told[0]
        pki.files.key.unlink()
        await until(lambda: len(told) == 2)
        assert str(pki.files.key) in told[1]
        pki.write(None, key)
        await until(lambda: told[-1] == "")


async def test_what_comes_back_as_it_was_is_no_change(pki: Pki) -> None:
    async with watching(pki) as told:
        aside = pki.files.key.with_suffix(".aside")
        pki.files.key.rename(aside)
        await asyncio.sleep(0.1)
        aside.rename(pki.files.key)
        await asyncio.sleep(0.1)
        assert told == []


async def test_what_comes_back_after_it_was_told_is_told(pki: Pki) -> None:
    async with watching(pki, patience_s=0.05) as told:
        aside = pki.files.key.with_suffix(".aside")
        pki.files.key.rename(aside)
        await until(lambda: told)
        aside.rename(pki.files.key)
        await until(lambda: told[-1] == "")
        await asyncio.sleep(0.1)
        assert len(told) == 2


async def test_what_was_wrong_and_is_as_it_was_ends_the_problem(pki: Pki) -> None:
    async with watching(pki, patience_s=0.05) as told:
        aside = pki.files.certificate.with_suffix(".aside")
        pki.files.certificate.rename(aside)
        await until(lambda: told and told[0])
        aside.rename(pki.files.certificate)
        await until(lambda: told[-1] == "")
        await asyncio.sleep(0.1)
        assert len(told) == 2
