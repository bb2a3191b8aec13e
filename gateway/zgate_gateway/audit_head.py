"""The key that signs the audit chain's heads, and the note of how far the chain has come.

All in the gateway's state directory:

``audit.key``   Ed25519, PKCS #8 in PEM, mode 0600, made at the first start
``audit.pub``   its public key in PEM: keep a copy where the gateway's administrators cannot change
                it, and give it to ``zgatectl audit verify --public-key``
``audit.head``  one signed line that says which record is the last one on the disk, replaced with
                every sync (each second, while there are records). The gateway compares it with
                the log at its start, so a log that was shortened meanwhile is found; a copy of it
                proves until when a log is complete (``--head``)
"""

from __future__ import annotations

import errno
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from zgate_identity.files import (
    PRIVATE_MODE,
    PUBLIC_MODE,
    IdentityFileError,
    locked_directory,
    read_file,
    write_file,
)

from zgate_gateway.audit_chain import (
    CHAIN_POSITION,
    AuditError,
    Head,
    Record,
    next_line,
    parse_record,
    signature_of,
)

logger = logging.getLogger(__name__)

KEY_NAME, PUBLIC_NAME, HEAD_NAME = "audit.key", "audit.pub", "audit.head"


class BadPublicKey(Exception):
    """A file holds no Ed25519 public key; the text names file, cause and cure."""


class HeadKeeper:
    """Signs heads, and keeps the note of the last one.

    :ivar public_key: 32 bytes in hex, as signed records name it.
    """

    def __init__(self, directory: Path) -> None:
        """Load the key, or make it. Raises :class:`AuditError`."""
        self._head_file = directory / HEAD_NAME
        self._key_file = directory / KEY_NAME
        try:
            with locked_directory(directory):
                self._key = _load_or_make(self._key_file)
                public = self._key.public_key()
                _write_public(directory / PUBLIC_NAME, public)
        except IdentityFileError as error:
            raise AuditError(str(error)) from error
        except OSError as error:
            raise AuditError(f"{directory}: the audit key: {error.strerror}") from error
        self.public_key = public.public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._key.sign(message)

    def note(self, head: Head) -> None:
        """Write down that the log is on the disk up to ``head``. Raises :class:`OSError`.

        A key that somebody has deleted is written again: the next start has to sign with this one.
        """
        if not self._key_file.exists():
            self._write_key()
        body = {
            "ts": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "event": CHAIN_POSITION,
            "key": self.public_key,
        }
        text = json.dumps(body, separators=(",", ":")).encode()
        draft = self._head_file.with_name(HEAD_NAME + ".new")
        draft.write_bytes(next_line(head, text, self.sign))
        draft.replace(self._head_file)

    def _write_key(self) -> None:
        try:
            write_file(self._key_file, _pem_of(self._key), PRIVATE_MODE)
            _write_public(self._key_file.with_name(PUBLIC_NAME), self._key.public_key())
        except IdentityFileError as error:
            raise OSError(errno.EIO, str(error)) from error

    def noted(self) -> Head | None:
        """Return the head of the last note; None: there is none that can be believed."""
        try:
            data = self._head_file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.error(
                "%(path)s: %(error)s; whether the audit log was cut is not known",
                {"event": "audit_head_unreadable", "path": self._head_file, "error": error},
            )
            return None
        position = parse_position(data)
        if position is None or not is_signed(position, {self.public_key}):
            logger.error(
                "%(path)s is not what this gateway wrote; whether the audit log was cut is not"
                " known",
                {"event": "audit_head_foreign", "path": self._head_file},
            )
            return None
        return Head(position.seq - 1, position.prev)


def parse_position(data: bytes) -> Record | None:
    """Return what a head file says; None: it is none. The signature is not checked."""
    record = parse_record(data)
    return record if record is not None and record.event == CHAIN_POSITION else None


def is_signed(record: Record, keys: set[str] | None = None) -> bool:
    """Whether a record's signature is good, and by one of ``keys`` (hex; None: by any)."""
    found = signature_of(record)
    if found is None or (keys is not None and found.key.hex() not in keys):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(found.key).verify(found.signature, found.message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_public_key(file: Path) -> str:
    """Return the Ed25519 public key of a PEM file in hex. Raises :class:`BadPublicKey`."""
    try:
        key = load_pem_public_key(read_file(file))
    except IdentityFileError as error:
        raise BadPublicKey(str(error)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadPublicKey(f"{file}: no public key in PEM; give the gateway's audit.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadPublicKey(f"{file}: no Ed25519 key; give the gateway's audit.pub")
    return key.public_bytes_raw().hex()


def _load_or_make(file: Path) -> Ed25519PrivateKey:
    if not file.exists():
        made = Ed25519PrivateKey.generate()
        write_file(file, _pem_of(made), PRIVATE_MODE)
        return made
    if file.stat().st_mode & 0o077:
        raise IdentityFileError(file, "others may read it", f"chmod 600 {file}")
    try:
        key = load_pem_private_key(read_file(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityFileError(
            file, "no Ed25519 key in PEM", "restore it, or move it away for a new one"
        )
    return key


def _pem_of(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_public(file: Path, key: Ed25519PublicKey) -> None:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if not file.exists() or file.read_bytes() != pem:
        write_file(file, pem, PUBLIC_MODE)
