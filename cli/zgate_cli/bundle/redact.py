"""Secrets masked, addresses replaced by names that stand for them. Pure.

What goes into an archive is on a list, and nothing on it is secret by nature; this is the second
line, for what people write where it does not belong. An address gets the same name wherever it
is, so that who reads can still see that two are one; the key of the names is forgotten.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

MASK = "[masked]"
_NAME_CHARS = 8

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_TELLING = (
    r"pass(?:word|wd|phrase)?|secret|token|credential|api[_-]?key|private[_-]?key|auth|"
    r"authorization|cookie|dsn"
)
#: ``password: x``, ``"token": "x"``, ``API_KEY=x``; the value up to the end of what it can be.
_ASSIGNED = re.compile(
    rf"""((?:^|[\s,{{\[(&?"'-])["']?[\w.-]*(?:{_TELLING})["']?\s*[:=]\s*)"""
    r"""("[^"\n]*"|'[^'\n]*'|(?:Bearer|Basic)\s+\S+|[^\s,;}\])&]+)""",
    re.IGNORECASE | re.MULTILINE,
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_URL_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+(?::[^/\s@]*)?@", re.IGNORECASE)
_MAC = re.compile(r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])")
_IPV6 = re.compile(
    r"(?<![0-9A-Za-z:.])(?=[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]*[0-9A-Fa-f:](?![0-9A-Za-z:])"
)
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z])(?!\.[0-9])")
_HARMLESS_SECRETS = frozenset({"true", "false", "null", "none", "~", "yes", "no", "0", "1", MASK})


class Redactor:
    """Takes things out of texts, and counts them by kind in `counts`."""

    def __init__(self, key: bytes, *, with_addresses: bool) -> None:
        self._key = key
        self._with_addresses = with_addresses
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        """The text without secrets, and without addresses unless they are wanted."""
        text = self._masked(_PEM, "pem", text)
        text = self._masked(_JWT, "token", text)
        text = _URL_USER.sub(self._url_user, text)
        text = _ASSIGNED.sub(self._assigned, text)
        text = _BEARER.sub(self._bearer, text)
        if self._with_addresses:
            return text
        text = _MAC.sub(lambda found: self._named("mac", found[0].lower()), text)
        text = _IPV6.sub(self._address, text)
        return _IPV4.sub(self._address, text)

    def document(self, value: Any) -> Any:
        """A document (of JSON or YAML), with what is below secret keys masked, too."""
        if isinstance(value, dict):
            return {
                str(key): self._mask_value(inner) if _is_secret(str(key)) else self.document(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.document(one) for one in value]
        return self.text(value) if isinstance(value, str) else value

    def _mask_value(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        self.counts["secret"] += 1
        return MASK

    def _masked(self, pattern: re.Pattern[str], kind: str, text: str) -> str:
        text, count = pattern.subn(MASK, text)
        if count:
            self.counts[kind] += count
        return text

    def _assigned(self, found: re.Match[str]) -> str:
        value = found[2].strip("\"'")
        if not value or value.lower() in _HARMLESS_SECRETS:
            return found[0]
        self.counts["secret"] += 1
        quote = found[2][0] if found[2][0] in "\"'" else ""
        return f"{found[1]}{quote}{MASK}{quote}"

    def _bearer(self, found: re.Match[str]) -> str:
        self.counts["token"] += 1
        return f"{found[1]} {MASK}"

    def _url_user(self, found: re.Match[str]) -> str:
        self.counts["secret"] += 1
        return f"{found[1]}{MASK}@"

    def _address(self, found: re.Match[str]) -> str:
        text = found[0]
        try:
            address = ip_address(text)
        except ValueError:
            # "fe80::1." at the end of a sentence.
            inner = text.rstrip(".:")
            rest = text[len(inner) :]
            try:
                address = ip_address(inner)
            except ValueError:
                return text
            return self._name_of(address) + rest
        return self._name_of(address)

    def _name_of(self, address: IPv4Address | IPv6Address) -> str:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = mapped or address
        if address.is_unspecified or address.is_loopback:
            return str(address)
        return self._named(f"ip{address.version}", str(address))

    def _named(self, kind: str, value: str) -> str:
        self.counts["address"] += 1
        digest = hmac.new(self._key, value.encode(), hashlib.sha256).hexdigest()
        return f"{kind}-{digest[:_NAME_CHARS]}"


def _is_secret(key: str) -> bool:
    """Whether a key is one whose value is nobody's business; files of keys are only named."""
    return re.fullmatch(rf"[\w.-]*(?:{_TELLING})", key, re.IGNORECASE) is not None
