"""A forge: certificates with any defect, built without the package's own profile."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


@dataclass
class Forge:
    now: datetime = NOW
    client_auth: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH
    server_auth: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH
    leaf_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    def name(self, names: Sequence[str], groups: Sequence[str] = ()) -> x509.Name:
        """A subject without the checks that the library makes when one is built properly."""
        pairs = [(NameOID.ORGANIZATIONAL_UNIT_NAME, each) for each in groups]
        pairs += [(NameOID.COMMON_NAME, each) for each in names]
        with warnings.catch_warnings(action="ignore"):
            return x509.Name(
                [x509.NameAttribute(oid, text, _validate=False) for oid, text in pairs]
            )

    def authority(
        self,
        name: str = "Test CA",
        *,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        issuer: Authority | None = None,
        is_ca: bool = True,
        path_length: int | None = None,
        cert_sign: bool = True,
        crl_sign: bool = True,
        key_usage: bool = True,
        not_before: datetime = NOW - 100 * DAY,
        not_after: datetime = NOW + 100 * DAY,
    ) -> Authority:
        key = key or self.key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name([name]))
            .issuer_name(issuer.certificate.subject if issuer else self.name([name]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        if key_usage:
            usage = self.key_usage(key_cert_sign=is_ca and cert_sign, crl_sign=crl_sign)
            builder = builder.add_extension(usage, critical=True)
        if issuer:
            builder = builder.add_extension(self.key_identifier(issuer), critical=False)
        signer = issuer.key if issuer else key
        return Authority(builder.sign(signer, hashes.SHA256()), key)

    def leaf(
        self,
        issuer: Authority,
        names: Sequence[str] = ("alice",),
        groups: Sequence[str] = (),
        *,
        usages: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        key: CertificateIssuerPrivateKeyTypes | None = None,
        signer: CertificateIssuerPrivateKeyTypes | None = None,
        digital_signature: bool = True,
        not_before: datetime = NOW - DAY,
        not_after: datetime = NOW + DAY,
        hosts: Sequence[x509.GeneralName] = (),
        extra: Sequence[x509.ExtensionType] = (),
    ) -> x509.Certificate:
        key = key or self.leaf_key
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name(names, groups))
            .issuer_name(issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(self.key_identifier(issuer), critical=False)
            .add_extension(
                self.key_usage(digital_signature=digital_signature, key_agreement=True), True
            )
        )
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        for each in extra:
            builder = builder.add_extension(each, critical=True)
        return builder.sign(signer or issuer.key, hashes.SHA256())

    def client(self, issuer: Authority, *args: object, **kwargs: object) -> bytes:
        """The DER of `leaf`."""
        return self.leaf(issuer, *args, **kwargs).public_bytes(Encoding.DER)  # type: ignore[arg-type]

    def crl(
        self,
        issuer: Authority,
        revoked: Sequence[int] = (),
        *,
        number: int | None = 1,
        signer: CertificateIssuerPrivateKeyTypes | None = None,
        last_update: datetime = NOW - DAY,
        next_update: datetime = NOW + DAY,
        extra: Sequence[x509.ExtensionType] = (),
        hash_algorithm: hashes.SHA224 | hashes.SHA256 | None = None,
    ) -> x509.CertificateRevocationList:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(last_update)
            .next_update(next_update)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(entry.revocation_date(last_update).build())
        if number is not None:
            builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        for each in extra:
            builder = builder.add_extension(each, critical=True)
        return builder.sign(signer or issuer.key, hash_algorithm or hashes.SHA256())

    def key_usage(self, **allowed: bool) -> x509.KeyUsage:
        usages = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        return x509.KeyUsage(**{**usages, **allowed})

    def key_identifier(self, issuer: Authority) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


@pytest.fixture(scope="session")
def forge() -> Forge:
    return Forge()


@pytest.fixture(scope="session")
def ca(forge: Forge) -> Authority:
    return forge.authority()
