"""What a client's or a group's name may look like.

A client's name is its certificate's Common Name, its groups are the OU entries. They end up
as keys of a policy, in log lines, on terminals and in file names, so that a name which reads
as another one, or which moves the cursor, must never come that far.
"""

import ipaddress
import re
import unicodedata

from cryptography import x509
from cryptography.x509.oid import NameOID

from zgate_identity.refusal import CertificateRefused, RefusalReason

MAX_NAME_CHARACTERS = 64
"""ub-common-name and ub-organizational-unit-name, RFC 5280 appendix A.1."""

_HOST_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(\.{_HOST_LABEL})*", re.IGNORECASE)
_UNSAFE_IN_FILE_NAME = re.compile(r"[^\w@.+-]", re.ASCII)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Host = str | IpAddress
"""A host name in A-labels and lower case, or an address."""


def name_problem(value: str) -> str | None:
    """What is wrong with `value` as the name of a client or a group; None if nothing is.

    Printable characters and single blanks inside, 1 to 64 of them, in Unicode's normal form C
    (two spellings of one name would be two clients).
    """
    if not value:
        return "is empty"
    if len(value) > MAX_NAME_CHARACTERS:
        return f"has {len(value)} characters, more than {MAX_NAME_CHARACTERS}"
    if not value.isprintable():
        return "holds control or invisible characters"
    if value != value.strip():
        return "begins or ends with a blank"
    if not unicodedata.is_normalized("NFC", value):
        return "is not in Unicode normal form C"
    return None


def client_name(subject: x509.Name) -> str:
    """The one Common Name of `subject`.

    Raises:
        CertificateRefused: BAD_NAME, if there is none, more than one, or it is no valid name.
    """
    names = _values(subject, NameOID.COMMON_NAME)
    if len(names) != 1:
        found = "none" if not names else str(len(names))
        raise CertificateRefused(
            RefusalReason.BAD_NAME, f"the subject must have exactly one Common Name; it has {found}"
        )
    problem = name_problem(names[0])
    if problem:
        raise CertificateRefused(RefusalReason.BAD_NAME, f"the Common Name {problem}")
    return names[0]


def client_groups(subject: x509.Name) -> tuple[str, ...]:
    """The OU entries of `subject`, in their order, each once.

    A bad entry refuses the certificate: leaving it out could also leave out a denial.

    Raises:
        CertificateRefused: BAD_GROUP, if an entry is no valid name.
    """
    groups = _values(subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    for group in groups:
        problem = name_problem(group)
        if problem:
            raise CertificateRefused(RefusalReason.BAD_GROUP, f"an OU entry {problem}")
    return tuple(dict.fromkeys(groups))


def _values(subject: x509.Name, oid: x509.ObjectIdentifier) -> list[str]:
    values = [attribute.value for attribute in subject.get_attributes_for_oid(oid)]
    return [value if isinstance(value, str) else "" for value in values]


def file_stem(name: str) -> str:
    """A file name, without its extension, for the files of client `name`; never hidden."""
    stem = _UNSAFE_IN_FILE_NAME.sub("_", name)
    return f"_{stem[1:]}" if stem[:1] in {".", "-"} else stem


def parse_host(value: str) -> Host:
    """A host as a certificate names it: an IP address or a DNS name in A-labels.

    Raises:
        ValueError: it is neither; the text says what was expected.
    """
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return check_dns_name(value)


def general_name(host: Host) -> x509.DNSName | x509.IPAddress:
    """`host` as subjectAltName holds it."""
    return x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)


def check_dns_name(value: str) -> str:
    """`value` in lower case, if it is a host name without wildcard.

    Raises:
        ValueError: it is not.
    """
    if not _HOST_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no host name (letters, digits, '-' and '.'; "
            "other scripts in their xn-- form; no wildcard)"
        )
    return value.lower()
